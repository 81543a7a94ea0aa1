"""A small training that every launcher starts, and its result when undisturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.rank_processes import start

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
del ENVIRONMENT["TORCH_CPP_LOG_LEVEL"]
LAUNCH = [sys.executable, "-m", "launch"]


@pytest.fixture(scope="session")
def config(disk: Path, recipe: Path, digits: Path) -> Path:
    """The quick recipe on all digits, for a few steps."""
    settings = yaml.safe_load(recipe.read_text())
    settings["min_steps"], settings["data"]["source"] = 30, str(digits)
    path = disk / "launch.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def on_one_host(run: Path, config: Path, *words: str) -> Path:
    """A training of two ranks, to its end."""
    output = run.with_name(f"{run.name} output")
    ranks = start("vgg_ddp.train", [str(config), f"run.dir={run}", "nproc=2", *words], 2, output)
    assert ranks.wait() == [0, 0], ranks.stderr
    return run


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m launch ...`, to its end."""
    return subprocess.run([*LAUNCH, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def steps_logged(run: Path) -> int:
    log = run / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def assert_same_weights(found: Path, expected: Path) -> None:
    ours, theirs = (weights(run) for run in (found, expected))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / (run / "checkpoints" / "latest").read_text() / "model.safetensors")
