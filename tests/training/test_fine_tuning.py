"""What trained weights are for: with few images of new classes they beat random initial weights."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np

from tests.support.rank_processes import Train
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.record import FileRecord, SplitRecord, encoded
from vgg_ddp.run.files import file_sha256

PIXELS = 16


def gratings(like: Path, target: Path, angles: list[int], each: int) -> Path:
    """A data set of stripes in noise: a class is their angle; their width, phase and colours are random.

    Args:
        like: a data set whose record provides whatever is not set here.
        each: training images per class; there are 30 test images per class.
    """
    target.mkdir()
    splits, random = {}, np.random.default_rng(sum(angles))
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    for split, count in (("train", each), ("test", 30)):
        labels = np.repeat(np.arange(len(angles)), count)
        angle = np.radians(np.array(angles))[labels][:, None, None]
        width, phase = random.uniform(0.9, 1.6, (len(labels), 1, 1)), random.uniform(0, 7, (len(labels), 1, 1))
        stripes = np.sin(width * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)[..., None]
        colours, noise = random.uniform(0.3, 1, (len(labels), 1, 1, 3)), random.normal(0, 45, (*stripes.shape[:3], 3))
        arrays = {"images": (128 + 45 * stripes * colours + noise).clip(0, 255).astype(np.uint8), "labels": labels}
        for kind, array in arrays.items():
            np.save(target / f"{split}.{kind}.npy", array)
        paths = [target / f"{split}.{kind}.npy" for kind in arrays]
        files = [FileRecord(path.name, path.stat().st_size, file_sha256(path)) for path in paths]
        splits[split] = SplitRecord(len(labels), [count] * len(angles), files)
    told = {"name": "stripes", "classes": [f"{angle} degrees" for angle in angles], "groups": {}, "splits": splits}
    shown = {"image_shape": [PIXELS, PIXELS, 3], "mean": [128.0] * 3, "std": [55.0] * 3}
    record = msgspec.structs.replace(Dataset(like).record, **told, **shown)
    (target / "dataset.json").write_bytes(encoded(record))
    return target


def accuracy(run: Path) -> float:
    return float(json.loads((run / "evaluation" / "summary.json").read_text())["accuracy"])


def test_fine_tuned_on_three_classes_it_beats_the_same_network_from_scratch(
    few_digits: Path, runs: Path, train: Train
) -> None:
    """On held-out pictures, with four training images per class and frozen convolutions."""
    many = gratings(few_digits, runs / "many", [0, 30, 60, 90, 120, 150], 100)
    few = gratings(few_digits, runs / "few", [15, 75, 135], 4)
    common = ("augment.flip=false", "schedule.name=one_cycle")
    source = train("source", *common, f"data.source={many}", "batch=30", "min_steps=40", "optimizer.learning_rate=0.05")
    assert accuracy(source) > 0.9
    words = (*common, f"data.source={few}", "batch=12", "min_steps=15", "optimizer.learning_rate=0.02")
    scratch = accuracy(train("scratch", *words))
    begun = (f"model.initialize_from={source}", "optimizer.features_rate=0")
    assert accuracy(train("tuned", *words, *begun)) > scratch + 0.1
