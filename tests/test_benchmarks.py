"""The benchmarks run and write what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_throughput_writes_machine_command_and_a_row_a_side(tmp_path: Path) -> None:
    options = [
        "--network",
        "vgg11",
        "--batch",
        "8",
        "--steps",
        "1",
        "--rounds",
        "2",
        "--json",
        str(tmp_path / "out.json"),
    ]
    command = [sys.executable, "-m", "benchmarks.throughput", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"machine", "command", "rows"}
    assert [row["name"] for row in written["rows"]] == ["vgg_ddp bf16", "plain fp32 NCHW"]
    for row in written["rows"]:
        assert 0 < row["least"] <= row["images_per_second"] <= row["most"]
        assert f"{row['images_per_second']:.1f} images/s" in done.stdout


def test_tracking_measures_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    options = ["--batch", "8", "--steps", "13", "--rounds", "1", "--threads", "1", "--json", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "benchmarks.tracking", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"machine", "command", "rows"}
    assert [row["name"] for row in written["rows"]] == ["wandb disabled", "wandb online, no answer"]
    for row in written["rows"]:
        assert row["steps"] == 3
        assert 0 < row["least"] <= row["step_seconds"] <= row["most"]
    assert "ratio" in done.stdout
