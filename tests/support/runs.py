"""Runs made up for a test: folders as training and evaluation leave them, with a data set of small pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vgg_ddp.analysis import course, data_quality, neighbours, reliance
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.summary import describe
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.record import DatasetRecord, FileRecord, SplitRecord
from vgg_ddp.report.sections.reliance import MEANINGS
from vgg_ddp.run.files import file_sha256

ANIMALS = ["bird", "cat", "deer", "dog", "frog", "horse"]
VEHICLES = ["airplane", "automobile", "ship", "truck"]
CLASSES = sorted(ANIMALS + VEHICLES)


@dataclass
class Run:
    """A run, and the arrays it was made from."""

    path: Path
    dataset: Dataset
    predictions: Predictions

    @property
    def label(self) -> np.ndarray:
        return self.predictions.label

    @property
    def prediction(self) -> np.ndarray:
        return self.predictions.prediction

    @property
    def confusion(self) -> np.ndarray:
        return np.array(json.loads((self.path / "evaluation" / "summary.json").read_text())["confusion"])


def make_dataset(path: Path, test: np.ndarray, classes: list[str], shape: tuple[int, int] = (8, 8)) -> Dataset:
    """A data set of noise whose upper left quarter encodes the picture's index: red is index // 256, green index % 256.

    Args:
        test: labels of the test images; there are as many training images.
    """
    path.mkdir(parents=True)
    splits = {}
    for seed, (name, labels) in enumerate((("train", np.sort(test)), ("test", test))):
        images = np.random.default_rng(seed).integers(0, 256, (len(labels), *shape, 3), dtype=np.uint8)
        index = np.arange(len(labels))
        images[:, : shape[0] // 2, : shape[1] // 2] = np.stack(
            [index // 256, index % 256, np.full_like(index, 99)], axis=1
        )[:, None, None]
        files = []
        for kind, array in (("images", images), ("labels", labels.astype(np.int64))):
            np.save(path / f"{name}.{kind}.npy", array)
            file = path / f"{name}.{kind}.npy"
            files.append(FileRecord(file.name, file.stat().st_size, file_sha256(file)))
        splits[name] = SplitRecord(len(labels), np.bincount(labels, minlength=len(classes)).tolist(), files)
    record = DatasetRecord(
        name="cifar10",
        classes=[name.encode(errors="replace").decode() for name in classes],
        groups={},
        storage="raw",
        encoding=None,
        image_shape=[*shape, 3],
        mean=[0.0] * 3,
        std=[1.0] * 3,
        covariance=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        splits=splits,
        source={},
        notes=[],
    )
    (path / "dataset.json").write_bytes(msgspec.json.encode(record))
    return Dataset(path)


def random_logits(label: np.ndarray, prediction: np.ndarray, classes: int, seed: int = 7) -> np.ndarray:
    """Logits whose largest is that of `prediction`, with varying confidence."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(label), classes)).astype(np.float32)
    logits[np.arange(len(label)), prediction] = logits.max(axis=1) + rng.exponential(1.5, len(label)) + 0.01
    return logits


def make_run(
    path: Path,
    classes: list[str] = CLASSES,
    label: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    epochs: int = 3,
    images: int = 400,
    shape: tuple[int, int] = (8, 8),
    groups: dict[str, list[str]] | None = None,
    dataset: Dataset | None = None,
    seed: int = 7,
    dataset_name: str = "cifar10",
    logits: np.ndarray | None = None,
    **summary: Any,
) -> Run:
    """A run folder; predictions are right about two times in three. `summary` replaces values in summary.json."""
    rng = np.random.default_rng(seed)
    count = len(classes)
    label = np.random.default_rng(1).integers(0, count, images) if label is None else label
    if prediction is None:
        prediction = np.where(rng.random(len(label)) < 0.65, label, rng.integers(0, count, len(label)))
    logits = random_logits(label, prediction, count, seed) if logits is None else logits
    predictions = Predictions(label, logits, np.arange(len(label)))
    dataset = dataset or make_dataset(path.with_name(f"{path.name}-dataset"), label, classes, shape)
    held_out = Predictions(
        *(array[: len(label) // 2] for array in (label, predictions.logits, predictions.sample_index))
    )
    described = describe(predictions, classes, groups or {}, held_out if len(held_out.label) else None, "half of them")
    data = data_quality.describe(dataset)
    made_up = causes(predictions, described, dataset)
    evaluation = {
        "dataset": dataset_name,
        "split": "test",
        "warnings": course.warnings([], np.array(described["confusion"])),
        **described,
        "data": data,
        "near_duplicates_accuracy": data_quality.accuracy_by_doubles(
            data["near_duplicates"], predictions.prediction == label, predictions.sample_index
        ),
        "why": made_up["why"],
        "network": "vgg16",
        "checkpoint_sha256": "ab" * 32,
        "world_size": 1,
        **summary,
    }
    write_json(path / "evaluation" / "summary.json", evaluation)
    np.savez(
        path / "evaluation" / "predictions.npz",
        label=label,
        prediction=predictions.prediction,
        probabilities=predictions.probabilities,
        sample_index=predictions.sample_index,
    )
    np.savez(path / "evaluation" / "why.npz", **made_up["arrays"])
    rows = []
    for step in range(2, 10 * epochs + 1, 2):
        fit = {"loss": 2.3 / (1 + step), "accuracy": 0.5, "lr": 0.1, "images_per_second": 500.0, "data_wait": 0.001}
        rows.append({"split": "train", "scope": "steps", "step": step, "epoch": step / 10, **fit})
        if step % 10 == 0:
            means = {"scope": "epoch", "step": step, "epoch": step / 10, "loss": 1.5, "accuracy": 0.6}
            rows += [{"split": "train", **means}, {"split": "validation", **means}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds = {"build_seconds": 1.2, "train_seconds": 216.4, "goodput": 0.973}
    speed = {**seconds, "images_per_second": 1532.1, "data_wait_share": 0.0042}
    size = {"peak_memory_bytes": 3 * 2**30, "steps": 10 * epochs, "epochs": epochs}
    write_json(path / "summary.json", {**speed, **size})
    versions = {"python": "3.11.2", "torch": "2.14.1"}
    machine = {"versions": versions, "devices": ["two cores"], "commit": None, "command": "vgg-ddp train x.yaml"}
    data_set = {"data": dataset_name, "data_sha256": dataset.sha256}
    write_json(path / "environment.json", {**machine, **data_set, "world_size": 1, "fallbacks": []})
    (path / "config.yaml").write_text("network: vgg16\nbatch: 256\n")
    return Run(path, dataset, predictions)


def causes(predictions: Predictions, described: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What `vgg_ddp.evaluation.why` would find, from coin flips and features that are independent of the classes."""
    rng, images = np.random.default_rng(11), len(predictions.label)
    train_labels = dataset.split("train").labels
    test, train = (unit(rng.normal(size=(count, 16))) for count in (images, len(train_labels)))
    shown = [*described["surest_mistakes"], *described["doubtful_labels"]["sample_index"]]
    near = neighbours.nearest(test[shown], train, 5)
    own = neighbours.nearest(train, train, 5, themselves=True)
    doubtful = np.arange(min(3, len(train_labels)))
    changes = {name: rng.random(images) < share for name, share in zip(MEANINGS, np.linspace(0.7, 0.1, len(MEANINGS)))}
    groups = {name: group["classes"] for name, group in described["groups"].items()}
    kinds = groups or ({name: [name] for name in described["classes"]} if len(described["classes"]) <= 20 else {})
    members = {name: [described["classes"].index(one) for one in of] for name, of in kinds.items()}
    unchanged = predictions.prediction == predictions.label
    occluded = np.array(described["surest_mistakes"][:9], dtype=np.int64)
    why = {
        "budget": "full",
        "left_out": ["Something was left out."],
        "neighbours": {
            "searched": len(train_labels),
            "of": len(train_labels),
            "nearest": dict(zip(map(str, shown), near.tolist())),
            "surest_mistakes": neighbours.of_mistakes(predictions, test, train_labels, train),
        },
        "training_labels": {
            "images": len(train_labels),
            "of": len(train_labels),
            "doubtful": len(doubtful),
            "sample_index": doubtful.tolist(),
            "label": train_labels[doubtful].tolist(),
            "prediction": train_labels[::-1][doubtful].tolist(),
            "nearest": own[doubtful].tolist(),
        },
        "relied_on": {
            "example": 0,
            **reliance.describe(changes, unchanged, {k: np.isin(predictions.label, of) for k, of in members.items()}),
        },
        "by_attribute": None,
        "by_agreement": None,
        "occlusion": {"sample_index": occluded.tolist(), "window": 8, "stride": 4, "grad_cam": False},
        "map": {"images": images, "nearest": 10, "kept": 0.5, "same_class": 0.25},
    }
    mistakes, near_mistakes = neighbours.of_each_mistake(predictions, test, train_labels, train, most=images)
    arrays = {
        "mistaken_samples": mistakes,
        "labels_near_mistakes": near_mistakes,
        "changed_pictures": rng.integers(0, 256, (len(changes) + 1, 32, 32, 3), dtype=np.uint8),
        "occluded_views": rng.integers(0, 256, (len(occluded), 32, 32, 3), dtype=np.uint8),
        "occlusion": rng.normal(size=(len(occluded), 32, 32)).astype(np.float32),
        "map_samples": np.arange(images),
        "map_places": rng.random((images, 2), dtype=np.float32),
    }
    return {"why": why, "arrays": arrays}


def unit(features: np.ndarray) -> np.ndarray:
    """Features of length one, as the evaluation keeps them."""
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def degenerate(name: str) -> dict[str, Any]:
    """Arguments of `make_run` for edge cases."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 10, 200)
    many = rng.integers(0, 100, 2000)
    return {
        "two classes": {"classes": ["cat", "dog"]},
        "one class": {"classes": ["cat"]},
        "a class without images": {"label": np.where(label == 4, 5, label)},
        "all right": {"label": label, "prediction": label},
        "all wrong": {"label": label, "prediction": (label + 1) % 10},
        "one image": {"label": label[:1], "prediction": label[:1] * 0 + 9},
        "one epoch": {"epochs": 1},
        "many epochs": {"epochs": 30},
        "many classes": {
            "classes": [f"a_long_class_name_that_goes_on_and_on_{k:03}" for k in range(100)],
            "label": many,
            "prediction": np.where(rng.random(2000) < 0.5, many, rng.integers(0, 100, 2000)),
        },
    }[name]
