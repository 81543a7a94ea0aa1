"""The scaling and noise benchmarks run and write what they promise."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import noise
from tests.support.rank_processes import program

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return program(f"benchmarks.{name}", *words, folder=ROOT)


SMALL = ["--parts", "measure", "--network", "vgg_tiny", "--batch", "4", "--steps", "1"]


def test_scaling_measures_and_checks(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    done = run("scaling", *SMALL, "--ranks", "1", "2", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    names = ["alone, batch 4", "alone, batch 2", "apart, 2 ranks", "weak, 2 ranks", "strong, 2 ranks"]
    assert [row["name"] for row in found["rows"]] == names
    for row in found["rows"]:
        parts = row["seconds"]
        assert parts["step"] == pytest.approx(parts["forward"] + parts["backward"] + parts["update"], rel=0.5)
        assert row["least"] <= row["images_per_second"] <= row["most"]
        assert (row["network"], row["image_size"], row["batch"]) == ("vgg_tiny", 32, 4)
    for row in found["check"]:
        lost = sum(row[key] for key in ("loss_small_batch", "loss_contention", "loss_communication", "loss_rest"))
        assert row["efficiency"] + lost == pytest.approx(1.0)
        assert row["error"] == pytest.approx(row["predicted_seconds"] / row["seconds"] - 1)
    assert found["calibration"]["bandwidth"] > 0
    assert (tmp_path / "scaling-measured.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_predicts_without_measuring(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    done = run("scaling", "--parts", "predict", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["predicted"]
    assert {row["gpus"] for row in found["rows"]} == {8 * 2**n for n in range(10)}
    assert len({row["exchange"] for row in found["rows"]}) == 5
    assert all(point["assumptions"] for point in found["published"])
    assert "Horovod" in done.stdout
    for picture in ("predicted-1", "predicted-2", "all-reduce", "published"):
        assert (tmp_path / f"scaling-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_that_do_not_divide_the_batch_get_one_line() -> None:
    done = run("scaling", *SMALL, "--ranks", "3")
    assert done.returncode == 2
    assert done.stderr == "error: --batch 4 does not divide over [1, 3] ranks\n"


def test_noise_holds_runs_of_one_version_against_one_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The runs are forked, like the tests' other commands."""
    file = tmp_path / "noise.json"
    options = ["--data", "digits", "--photos", "0", "--batch", "8", "--seconds", "0.01", "--rounds", "3", "--only"]
    words = ["--runs", "4", "--json", str(file), "loaders", *options, "synthetic raw", "resident raw"]
    forked = SimpleNamespace(run=lambda line, **_: run(line[2].removeprefix("benchmarks."), *line[3:]))
    monkeypatch.setattr(noise, "subprocess", forked)
    monkeypatch.setattr("sys.argv", ["noise", *words])
    noise.main()
    assert "verdicts are noise" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert [row["verdicts"] for row in found["rows"]] == [6, 2]  # one row per loader
    assert len(found["runs"]) == 4
    assert found["scatter_over_reference"] > 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
