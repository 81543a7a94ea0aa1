"""Statistics of the answers to training images, against counting by hand and against flipped labels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.rank_processes import Train
from vgg_ddp.analysis.dynamics import BINS, FEWEST_EPOCHS, describe, dynamics
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.record import FileRecord, encoded
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import file_sha256
from vgg_ddp.run.training_answers import read_epochs


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_each_figure_is_that_of_the_image_s_own_epochs(epochs: int, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    margins = random.normal(0, 3, (epochs, images))
    margins[random.random((epochs, images)) < 0.2] = np.nan
    probabilities = np.where(np.isnan(margins), np.nan, random.random((epochs, images)))
    found = dynamics(np.stack([margins, probabilities], axis=1).astype(np.float32))
    assert found is not None
    assert found.samples.tolist() == np.flatnonzero(~np.isnan(margins).all(axis=0)).tolist()
    for k, sample in enumerate(found.samples):
        own = [
            (float(np.float32(m)), float(np.float32(p)))
            for m, p in zip(margins[:, sample], probabilities[:, sample])
            if np.isfinite(m)
        ]
        right = [m > 0 for m, _ in own]
        assert found.epochs[k] == len(own)
        assert found.margin[k] == pytest.approx(np.mean([m for m, _ in own]))
        assert found.confidence[k] == pytest.approx(np.mean([p for _, p in own]))
        assert found.variability[k] == pytest.approx(np.std([p for _, p in own]), abs=1e-6)
        assert found.right[k] == sum(right)
        assert found.forgotten[k] == sum(a and not b for a, b in itertools.pairwise(right))


def test_the_map_and_the_classes_hold_each_image_once() -> None:
    random = np.random.default_rng(0)
    answers = np.stack([random.normal(0, 1, (5, 200)), random.random((5, 200))], axis=1).astype(np.float32)
    answers[:, :, ::10] = np.nan  # held out
    answers[4, :, 1] = np.nan  # not in the last epoch
    labels = random.integers(0, 3, 200)
    found = describe(dynamics(answers), labels, ["a", "b", "c"])
    assert found is not None
    assert (found["trained_on"], found["epochs"], found["fewest_epochs"]) == (180, 5, 4)
    assert np.sum(found["map"]) == 180 and np.shape(found["map"]) == (BINS, BINS)
    for key in ("trained_on", "never_right", "always_right", "forgotten"):
        assert sum(row[key] for row in found["per_class"]) == found[key]
    margins = [row["margin"] for row in found["lowest_margin"]]
    assert margins == sorted(margins)
    assert all(row["label"] == "abc"[labels[row["sample"]]] for row in found["most_forgotten"])


def test_of_few_epochs_nothing_is_said() -> None:
    answers = np.ones((FEWEST_EPOCHS, 2, 4), dtype=np.float32)
    labels = np.zeros(4, dtype=np.int64)
    assert describe(dynamics(answers), labels, ["a"]) is not None
    assert describe(dynamics(answers[1:]), labels, ["a"]) is None
    assert describe(dynamics([]), labels, ["a"]) is None


@pytest.fixture(scope="module")
def flipped(digits: Path, runs: Path) -> tuple[Path, NDArray[np.int64]]:
    """The digits with 2 % of their training labels flipped, and the indices of those."""
    target = runs / "flipped"
    target.mkdir()
    dataset = Dataset(digits)
    random, labels = np.random.default_rng(0), dataset.split("train").labels.copy()
    wrong = random.choice(len(labels), round(0.02 * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 10, len(wrong))) % 10
    splits = {}
    for name, split in dataset.record.splits.items():
        for file in split.files:
            (target / file.name).write_bytes((digits / file.name).read_bytes())
        if name == "train":
            np.save(target / "train.labels.npy", labels)
        files = [
            FileRecord(f.name, (target / f.name).stat().st_size, file_sha256(target / f.name)) for f in split.files
        ]
        counts = np.bincount(labels if name == "train" else dataset.split(name).labels, minlength=10).tolist()
        splits[name] = msgspec.structs.replace(split, class_counts=counts, files=files)
    (target / "dataset.json").write_bytes(encoded(msgspec.structs.replace(dataset.record, splits=splits)))
    return target, wrong


def test_flipped_labels_of_training_images_have_the_lowest_margins(
    flipped: tuple[Path, NDArray[np.int64]], train: Train
) -> None:
    """At least 0.6 of as many images as were flipped; by chance it is 0.02."""
    folder, wrong = flipped
    words = ("batch=64", "min_steps=132", "augment.flip=false", "log.every_steps=22")
    run = train("flipped run", f"data.source={folder}", *words)
    found = dynamics(read_epochs(RunDirectory(run), 1438))
    assert found is not None and found.epochs.max() == 6
    suspected = found.samples[np.argsort(found.margin)[: len(wrong)]]
    assert np.isin(suspected, wrong).mean() >= 0.6
    said = json.loads((run / "evaluation" / "summary.json").read_text())["training_dynamics"]
    assert [row["sample"] for row in said["lowest_margin"]] == found.samples[np.argsort(found.margin)][:48].tolist()
    assert said["trained_on"] == len(found.samples) and said["epochs"] == 6
    page = (run / "report" / "index.html").read_text()
    for row in said["lowest_margin"][:24]:
        assert f'train image {row["sample"]} of digits, labelled {row["label"]}"' in page
