"""`make train`: the recipe that a newcomer runs first works well on any data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.support.pictures import encode, write_folder
from tests.support.rank_processes import vgg_ddp
from vgg_ddp.config import load
from vgg_ddp.run.metrics_log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.processes]

ONE_CORE = ("device=cpu", "nproc=1", "threads=1", "analysis.budget=none")
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def trained(run: Path, *overrides: str) -> float:
    """Train the quickstart to its end; the test accuracy."""
    done = vgg_ddp("train", str(QUICKSTART), f"run.dir={run}", *ONE_CORE, *overrides, folder=run.parent)
    assert done.returncode == 0, done.stderr
    assert (run / "report" / "index.html").is_file()
    return float(json.loads((run / "evaluation" / "summary.json").read_text())["accuracy"])


def test_the_digits_are_learned_without_warning_signs(digits: Path, tmp_path: Path) -> None:
    """The fallback where CIFAR-10 is unavailable: few images, on which a recipe for many would diverge."""
    run = tmp_path / "run"
    assert trained(run, f"data.source={digits}") >= 0.95
    config = load(run / "config.yaml")
    assert (config.batch, config.augment.flip) == (32, False)
    chance = math.log(10)
    epochs = {split: [row["loss"] for row in read_metrics(run / "metrics.jsonl") if
                      row["split"] == split and row["scope"] == "epoch"] for split in ("train", "validation")}  # fmt: skip
    assert max(epochs["validation"]) < 1.5 * chance  # also where the network has only seen smaller images
    assert max(epochs["train"][1:]) < epochs["train"][0] < chance
    assert epochs["validation"][-1] == pytest.approx(min(epochs["validation"]), abs=0.1)


def test_photos_are_seen_whole(tmp_path: Path) -> None:
    """The class is which half of the picture is bright: no crop of 32 x 32 pixels shows it."""
    noise = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 40), ("test", 15)):
        for half in (0, 1):
            for number in range(count):
                pixels = noise.integers(0, 60, (200, 220, 3))
                pixels[100 * half : 100 * half + 100] += 150
                files[f"{split}/{('upper', 'lower')[half]}/{number}.jpg"] = encode(pixels.astype(np.uint8))
    write_folder(tmp_path / "photos", files)
    run = tmp_path / "run"
    overrides = [f"data.source={tmp_path}/photos", f"data.directory={tmp_path}", "min_steps=24", "data.train_sizes=[]"]
    assert trained(run, *overrides) == 1.0
    config = load(run / "config.yaml")
    assert (config.data.image_size, config.data.resize, config.batch) == (64, 73, 16)
    choices = json.loads((run / "environment.json").read_text())["choices"]
    assert any(line.startswith("data.resize=73: images of 200 pixels") for line in choices)
