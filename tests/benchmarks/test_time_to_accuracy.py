"""Time to accuracy: what is read from a run, and a real run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_accuracy
from benchmarks.scaling_model.network import layers, training_flops
from tests.support.rank_processes import program
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]


def validation(step: int, epoch: float, seconds: float, accuracy: float) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "seconds": seconds, "accuracy": accuracy, "split": "validation"}


def test_the_first_validation_at_the_target_counts() -> None:
    rows = [
        {**validation(5, 0.5, 2.0, 0.99), "split": "train"},
        validation(10, 1.0, 5.0, 0.4),
        validation(20, 2.0, 10.0, 0.6),
        validation(30, 3.0, 15.0, 0.5),
        validation(40, 4.0, 20.0, 0.8),
    ]
    found = time_to_accuracy.reached(rows, 0.6)
    assert found is not None
    assert found["seconds"] == 10.0
    assert time_to_accuracy.reached(rows, 0.81) is None


def test_pflop_follows_the_size_of_each_epochs_images() -> None:
    config = Config(network="vgg11", batch=100, data=DataConfig(image_size=32, train_sizes=[16]))
    small, large = (training_flops(layers("vgg11", True, "compact", 10, size)) for size in (16, 32))
    found = time_to_accuracy.pflop(config, classes=10, step=25, steps_per_epoch=10)
    assert found == pytest.approx((10 * 100 * small + 15 * 100 * large) / 1e15)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return program("benchmarks.time_to_accuracy", *words, folder=ROOT)


def test_two_seeds_on_digits(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    keys = ["data.source=digits", f"data.directory={tmp_path}/datasets", "data.image_size=16", "data.train_sizes=[]"]
    keys += ["epochs=1", "min_steps=2", "batch=128", "data.validation=0.1", "nproc=1", "threads=1"]
    done = run("configs/quickstart.yaml", *keys, "--target", "0.05", "--seeds", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {"machine", "command", "rows", "target", "target_rule", "timing_rule", "config"} <= set(found)
    seconds, epochs, pflop = found["rows"]
    assert seconds["mean"] == pytest.approx(sum(seconds["all"]) / 2)
    assert len(seconds["reference"]) == 2
    for trained in found["runs"]:
        assert 0 < trained["seconds"] < trained["command_seconds"]
        assert trained["seconds"] <= trained["train_seconds"] + 0.1
        assert len(trained["curve"]) == 1
    assert epochs["least"] >= 1
    assert pflop["least"] > 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["configs/none.yaml", "--target", "0.5"], "configs/none.yaml does not exist"),
        (["configs/quickstart.yaml", "data.validation=0", "--target", "0.5"], "data.validation=0 holds no images out"),
        (["configs/quickstart.yaml", "netwrk=vgg11", "--target", "0.5"], "netwrk"),
    ],
)
def test_a_mistake_gets_one_line(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
