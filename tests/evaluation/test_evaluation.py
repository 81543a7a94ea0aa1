"""Every test image counts exactly once, and the world size changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

import vgg_ddp
from tests.support.rank_processes import Ranks, start
from tests.support.run_folders import latest
from vgg_ddp import evaluate
from vgg_ddp.config import load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.validation import held_out
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import own_images
from vgg_ddp.run import checkpoint


def torchmetrics_error(arrays: dict[str, np.ndarray[Any, Any]]) -> float:
    """The calibration error of predictions, 15 bins."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes two seconds

    probabilities = torch.from_numpy(arrays["probabilities"]).clamp(max=1 - 1e-6)
    return float(
        multiclass_calibration_error(probabilities, torch.from_numpy(arrays["label"]), 10, n_bins=15, norm="l1")
    )


def evaluated(run: Path, size: int, batch: int, output: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """summary.json and predictions.npz of an evaluation on `size` ranks."""
    ranks = start("vgg_ddp.evaluate", [str(run), f"evaluate.batch={batch}"], size, output)
    assert ranks.wait() == [0] * size, ranks.stderr
    return json.loads((run / "evaluation" / "summary.json").read_text()), arrays_of(run, "predictions")


def arrays_of(run: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(run / "evaluation" / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(
    whole_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """The summary, predictions and causes of one rank, in batches of 7."""
    return *evaluated(whole_run, 1, 7, tmp_path_factory.mktemp("alone")), arrays_of(whole_run, "why")


@pytest.mark.parametrize("batch", [7, 23, 64])  # 64: all images on one rank, none on the others
def test_one_two_and_three_ranks_write_the_same(batch: int, alone: Any, whole_run: Path, tmp_path: Path) -> None:
    def on_ranks(size: int) -> Any:
        if (size, batch) == (1, 7):
            return alone
        return *evaluated(whole_run, size, batch, tmp_path / str(size)), arrays_of(whole_run, "why")

    summaries, predictions, causes = zip(*map(on_ranks, (1, 2, 3)))
    for size, summary in zip((1, 2, 3), summaries):
        assert summary["world_size"] == size
        assert summary["images"] == 40
        assert {**summary, "world_size": 1} == summaries[0]
    for arrays in predictions:
        assert np.array_equal(arrays["sample_index"], np.arange(40))
    for arrays, expected in (*zip(predictions, predictions[:1] * 3), *zip(causes, causes[:1] * 3)):
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            assert np.array_equal(array, expected[name]), name


def test_the_summary_is_what_scikit_learn_says_of_the_predictions(alone: Any) -> None:
    summary, arrays, _ = alone
    label, prediction = arrays["label"], arrays["prediction"]
    assert summary["accuracy"] == accuracy_score(label, prediction)
    assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, prediction))
    assert summary["macro_f1"] == pytest.approx(f1_score(label, prediction, average="macro", labels=np.unique(label)))
    assert summary["uneven"] is False
    assert summary["confusion"] == confusion_matrix(label, prediction, labels=range(10)).tolist()
    probabilities = arrays["probabilities"].astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert summary["loss"] == pytest.approx(log_loss(label, probabilities, labels=range(10)), rel=1e-4)
    scores = precision_recall_fscore_support(label, prediction, labels=range(10), zero_division=np.nan)
    for name, expected in zip(("precision", "recall", "f1", "images"), scores):
        found = [np.nan if row[name] is None else row[name] for row in summary["per_class"]]
        assert found == pytest.approx(expected.tolist(), nan_ok=True), name
    for k, found in summary["top_k_accuracy"].items():
        if int(k) < 10:
            assert found == top_k_accuracy_score(label, probabilities, k=int(k), labels=range(10))
    calibration = summary["calibration"]
    assert calibration["expected_calibration_error"] == pytest.approx(torchmetrics_error(arrays), abs=1e-6)
    assert calibration["temperature"] is None
    assert calibration["temperature_from"] == "the run held out no images for validation"


def test_answers_that_are_not_finite_are_refused(whole_run: Path, tmp_path: Path) -> None:
    """In float16, whose largest number is 65504, such weights overflow; in float32 their answers are finite."""
    run = tmp_path / "large"
    shutil.copytree(whole_run, run)
    folder = latest(run)
    files = checkpoint.read(folder)
    weights = checkpoint.tensors(files, "model.safetensors")
    weights["classifier.0.weight"] = torch.full_like(weights["classifier.0.weight"], 60000.0)
    optimizer = checkpoint.tensors(files, "optimizer.safetensors")
    checkpoint.write(
        run / "checkpoints", checkpoint.encode(weights, optimizer, checkpoint.state(files), None), int(folder.name[5:])
    )
    ranks = start("vgg_ddp.evaluate", [str(run), "precision=fp16"], 2, tmp_path / "ranks")
    assert ranks.wait() == [2, 2], ranks.stderr
    (line,) = ranks.stderr.splitlines()
    assert "are not finite in fp16" in line and "precision=fp32" in line
    ranks = start("vgg_ddp.evaluate", [str(run), "precision=fp32"], 1, tmp_path / "ranks")
    assert ranks.wait() == [0], ranks.stderr


def accuracy_in_training(run: Path, data: Path) -> float:
    """The accuracy of a run's network on its training images: the middle 16 x 16 of each, not augmented."""
    dataset = Dataset(data)
    split, trained = dataset.split("train"), held_out(dataset, load(run / "config.yaml").data, 0)[0]
    pictures = torch.stack([torch.from_numpy(split.decode(k)[8:24, 8:24].copy()) for k in trained.tolist()])
    with torch.no_grad():
        answers = vgg_ddp.load_network(run)(pictures).argmax(dim=1)
    return accuracy_score(split.labels[trained], answers)


def test_the_temperature_is_fitted_on_the_held_out_images_at_any_world_size(
    train: Any, few_digits: Path, tmp_path: Path
) -> None:
    run = train("held out", "min_steps=20", "model.batch_norm=true", "data.validation=0.65")
    summaries = [evaluated(run, size, 11, tmp_path / str(size))[0] for size in (1, 2, 3)]
    calibration = summaries[0]["calibration"]
    images = sum(summaries[0]["data"]["class_counts"]["train"])
    left_out = 100  # of 160: 65 % of each class, rounded
    assert calibration["temperature_from"] == f"{left_out} images held out for validation"
    assert calibration["temperature"] > 0
    low, high = calibration["temperature_interval"]
    assert low <= calibration["temperature"] <= high
    trained = summaries[0]["training_images"]
    assert trained == {"images": images - left_out, "accuracy": accuracy_in_training(run, few_digits)}
    assert [summary["training_images"] for summary in summaries] == [trained] * 3
    assert calibration["scaled"]["loss"] > 0
    assert [summary["calibration"] for summary in summaries] == [calibration] * 3
    ranks = start("vgg_ddp.evaluate", [str(run), "data.validation=0.5"], 1, tmp_path / "other")
    assert ranks.wait() == [0], ranks.stderr
    elsewhere = json.loads((run / "evaluation" / "summary.json").read_text())
    assert elsewhere["training_images"] is None  # which images were trained on is not known
    other = elsewhere["calibration"]
    assert other["temperature"] is None and "held out other images" in other["temperature_from"]
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("truck/1.png", "truck"),
        ("mine/Truck/1.png", "truck"),
        ("truck/CAR/1.png", "Car"),
        ("DOG/1.png", None),
        ("Dog/1.png", "Dog"),
        ("trucks/1.png", None),
        ("truck.png", None),
    ],
)
def test_a_folder_s_class_is_found_in_other_letters_where_only_one_can_be_meant(name: str, label: str | None) -> None:
    assert own_images.class_of(name, ["truck", "Car", "dog", "Dog"]) == label


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["data.resize=null"], ""),
        (["data.resize=16"], ""),
        (["data.resize=null", "evaluate.protocol=dense", "evaluate.scales=[16, 20]"], "dense-16-20"),
    ],
)
def test_one_s_own_images_are_answered_as_in_the_evaluation(
    whole_run: Path, few_digits: Path, tmp_path: Path, words: list[str], name: str
) -> None:
    """The test images of 32 pixels as files in folders named after their classes; the network sees 16 x 16 of each."""
    words = [*words, "evaluate.batch=7"]
    ranks = start("vgg_ddp.evaluate", [str(whole_run), *words], 1, tmp_path / "ranks")
    assert ranks.wait() == [0], ranks.stderr
    place = whole_run / "evaluations" / name if name else whole_run
    with np.load(place / "evaluation" / "predictions.npz") as arrays:
        expected = arrays["probabilities"]
    dataset = Dataset(few_digits)
    split, folder = dataset.split("test"), tmp_path / f"mine {words[0]} {name}"
    for k in range(len(split)):
        target = folder / dataset.classes[split.labels[k]] / f"{k:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.decode(k)).save(target)
    (folder / "broken.jpg").write_bytes(b"nothing")
    train = dataset.split("train")
    twin = int(held_out(dataset, load(whole_run / "config.yaml").data, 0)[0][7])
    Image.fromarray(train.decode(twin)).save(folder / "twin.png")
    ranks = Ranks(evaluate.main, ([str(whole_run), *words], folder), 1, tmp_path / "own")
    assert ranks.wait() == [0], ranks.stderr
    found = json.loads((whole_run / "images" / folder.name / "predictions.json").read_text())
    assert len(found["unreadable"]) == 1
    assert found["unreadable"][0].startswith(
        "broken.jpg cannot be decoded: it is no image of a format that is read (JPEG,"
    )
    assert "left out: broken.jpg" in ranks.stdout
    *rows, other = found["images"]
    assert len(rows) == 40 and (other["file"], other["label"]) == ("twin.png", None)
    assert other["nearest_training_images"][:1] == ([] if name else [twin])
    for row in rows:
        assert len(set(row["nearest_training_images"])) == (0 if name else 5)
        k = int(Path(row["file"]).stem)
        assert row["label"] == dataset.classes[split.labels[k]]
        ours = [row["probabilities"][name] for name in dataset.classes]
        assert ours == pytest.approx(expected[k].tolist(), rel=1e-4, abs=1e-6)
    page = (whole_run / "images" / folder.name / "index.html").read_text()
    assert (": all of it, densely, at 16 pixels, 20 pixels" in page) == bool(name)
    assert (f'alt="training image {twin}: {dataset.classes[train.labels[twin]]}"' in page) == (not name)


def answer_without_training_images(run: Path, folder: Path) -> int:
    """As a rank that cannot get the nearest training images."""

    def nearest(self: object, *arguments: object) -> None:
        raise UserError("the 7th cannot be decoded")

    own_images.OwnImages.nearest = nearest  # type: ignore[method-assign,assignment]
    words = ["data.resize=null", "evaluate.protocol=dense"] if "large" in folder.name else ["data.resize=null"]
    return evaluate.main([str(run), *words], folder)


@pytest.mark.parametrize("name", ["large", "small"])
def test_answers_do_not_hang_on_what_is_shown_beside_them(whole_run: Path, tmp_path: Path, name: str) -> None:
    """A photo of 6 megapixels is brought to the network's size where it is to see all of it."""
    folder = tmp_path / name
    folder.mkdir()
    Image.effect_noise((3000, 2000) if name == "large" else (5, 9), 60).convert("RGB").save(folder / "a.png")
    ranks = Ranks(answer_without_training_images, (whole_run, folder), 1, tmp_path / "own")
    assert ranks.wait() == [0], ranks.stderr
    left_out = "the nearest training images are left out: the 7th cannot be decoded"
    assert (left_out in ranks.stdout) == (name == "small")  # several views have no neighbours
    assert ("all of it, densely, at 16 pixels" in ranks.stdout) == (name == "large")
    page = (whole_run / "images" / name / "index.html").read_text()
    assert ("its middle, as a single view has it" in page) == (name == "large")


def other_set(few_digits: Path, folder: Path, classes: dict[str, int]) -> Path:
    """An image folder with the test images of some digits, under our own class names; `classes` maps name to digit."""
    split = Dataset(few_digits).split("test")
    for name, digit in classes.items():
        for k in np.flatnonzero(split.labels == digit):
            for part in ("train", "test"):
                target = folder / part / name / f"{k:02}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(split.decode(int(k))).save(target)
    return folder


def test_classes_of_other_data_are_matched_by_name(
    alone: Any, whole_run: Path, few_digits: Path, tmp_path: Path
) -> None:
    summary, arrays, _ = alone
    source = other_set(few_digits, tmp_path / "other", {"7": 7, "2": 2, "5": 5})
    words = [str(whole_run), f"data.source={source}", f"data.directory={tmp_path}"]
    ranks = start("vgg_ddp.evaluate", words, 1, tmp_path / "ranks")
    assert ranks.wait() == [0], ranks.stderr
    assert "other has test images of 3 of the network's 10 classes, none of 0, 1, 3, 4, 6, 8, 9" in ranks.stdout
    (folder,) = (whole_run / "evaluations").glob("other*")
    found = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert (found["images"], found["classes"]) == (12, summary["classes"])
    assert [row["images"] for row in found["per_class"]] == [4 * (digit in (2, 5, 7)) for digit in range(10)]
    with np.load(folder / "evaluation" / "predictions.npz") as others:
        which = [k for digit in (2, 5, 7) for k in np.flatnonzero(arrays["label"] == digit)]
        assert np.array_equal(others["label"], arrays["label"][which])
        # normalised by the training set's mean and deviation, not by their own
        assert np.allclose(others["probabilities"], arrays["probabilities"][which], rtol=1e-4, atol=1e-6)


def test_a_class_that_the_network_does_not_know_is_refused_with_both_lists(
    whole_run: Path, few_digits: Path, tmp_path: Path
) -> None:
    source = other_set(few_digits, tmp_path / "other", {"7": 7, "dog": 2})
    words = [str(whole_run), f"data.source={source}", f"data.directory={tmp_path}"]
    ranks = start("vgg_ddp.evaluate", words, 2, tmp_path / "ranks")
    assert ranks.wait() == [2, 2]
    expected = (
        "other has test images of dog, which the network does not know: it tells apart 0, 1, 2, 3, 4, 5, 6, 7, 8, 9;"
    )
    assert expected in ranks.stderr and "the classes of other are 7, dog" in ranks.stderr


@pytest.fixture(scope="module")
def whole_run(train: Any, runs: Path) -> Any:
    run = train("evaluated", "min_steps=4", "analysis.budget=full")
    yield run
    shutil.rmtree(run)
