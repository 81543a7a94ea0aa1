"""The metrics against scikit-learn, torch, and counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from vgg_ddp.analysis.predictions import Predictions, accuracy, class_accuracies, loss, summarize, top_k_accuracy


def predictions_of(label: object, logits: object) -> Predictions:
    label = np.asarray(label, dtype=np.int64)
    return Predictions(label, np.asarray(logits, dtype=np.float32), np.arange(len(label)))


@st.composite
def any_predictions(draw: st.DrawFn, smallest: int = 2, scale: float = 3.0) -> Predictions:
    """Some images of some classes, not every class among them; logits without ties."""
    classes, images = draw(st.integers(smallest, 12)), draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = random.permutation(classes)[: draw(st.integers(1, classes))]
    return predictions_of(random.choice(present, images), random.normal(0, scale, (images, classes)))


def names(predictions: Predictions) -> list[str]:
    return [f"class {i}" for i in range(predictions.logits.shape[1])]


@given(any_predictions())
def test_accuracy_and_confusion_are_scikit_learn_s(predictions: Predictions) -> None:
    classes = names(predictions)
    summary = summarize(predictions, classes)
    guess = predictions.logits.argmax(axis=1)
    expected = confusion_matrix(predictions.label, guess, labels=np.arange(len(classes)))
    assert summary["accuracy"] == accuracy(predictions) == pytest.approx(accuracy_score(predictions.label, guess))
    assert summary["confusion"] == expected.tolist()
    assert summary["images"] == len(predictions.label)


@given(any_predictions())
def test_each_class_is_as_in_scikit_learn_s_report(predictions: Predictions) -> None:
    classes = names(predictions)
    report = classification_report(
        predictions.label,
        predictions.prediction,
        labels=np.arange(len(classes)),
        target_names=classes,
        output_dict=True,
        zero_division=np.nan,
    )
    for found in summarize(predictions, classes)["per_class"]:
        expected = report[found["name"]]
        assert found["images"] == expected["support"]
        for ours, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("accuracy", "recall"),
            ("f1", "f1-score"),
        ):
            value = np.nan if found[ours] is None else found[ours]
            assert value == pytest.approx(expected[theirs], nan_ok=True)


@given(any_predictions())
def test_each_class_is_what_counting_gives(predictions: Predictions) -> None:
    pairs = list(zip(predictions.label.tolist(), predictions.logits.argmax(axis=1).tolist()))
    for number, found in enumerate(summarize(predictions, names(predictions))["per_class"]):
        of_class = sum(label == number for label, _ in pairs)
        guessed = sum(guess == number for _, guess in pairs)
        right = pairs.count((number, number))
        assert (found["images"], found["correct"]) == (of_class, right)
        assert found["accuracy"] == found["recall"] == (pytest.approx(right / of_class) if of_class else None)
        assert found["precision"] == (pytest.approx(right / guessed) if guessed else None)
        assert found["f1"] == (pytest.approx(2 * right / (of_class + guessed)) if of_class + guessed else None)


@given(any_predictions())
def test_confusion_adds_up(predictions: Predictions) -> None:
    classes = names(predictions)
    summary = summarize(predictions, classes)
    confusion = np.array(summary["confusion"])
    assert confusion.sum(axis=1).tolist() == [c["images"] for c in summary["per_class"]]
    assert confusion.sum(axis=0).tolist() == np.bincount(predictions.prediction, minlength=len(classes)).tolist()
    assert np.trace(confusion) == round(summary["accuracy"] * summary["images"])


@given(any_predictions(smallest=3, scale=3.0))
def test_loss_is_scikit_learn_s(predictions: Predictions) -> None:
    exponentials = np.exp(predictions.logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = log_loss(predictions.label, probabilities, labels=np.arange(probabilities.shape[1]))
    assert loss(predictions) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(any_predictions(scale=1e4))
def test_loss_is_torch_s_where_probabilities_vanish(predictions: Predictions) -> None:
    logits = torch.from_numpy(predictions.logits).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(predictions.label)).item()
    assert loss(predictions) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.isfinite(predictions.probabilities).all()


@given(any_predictions(scale=50.0))
def test_probabilities_are_torch_s_softmax(predictions: Predictions) -> None:
    expected = torch.from_numpy(predictions.logits).double().softmax(dim=1).float().numpy()
    assert predictions.probabilities.dtype == np.float32
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-6, atol=0)


@given(any_predictions(), st.integers(1, 12))
def test_top_k_is_scikit_learn_s(predictions: Predictions, k: int) -> None:
    classes = predictions.logits.shape[1]
    if k >= classes:
        assert top_k_accuracy(predictions, k) == 1.0
    elif classes > 2:  # with two, scikit-learn takes scores of the second class only
        expected = top_k_accuracy_score(predictions.label, predictions.logits, k=k, labels=np.arange(classes))
        assert top_k_accuracy(predictions, k) == pytest.approx(expected)
    if k == 1:
        assert top_k_accuracy(predictions, 1) == accuracy(predictions)


def test_ties_fall_to_the_lower_class() -> None:
    same = np.zeros((10, 10))
    assert top_k_accuracy(predictions_of(np.arange(10), same), 5) == 0.5
    assert accuracy(predictions_of(np.zeros(10), same)) == 1.0


@pytest.mark.parametrize(("classes", "given_"), [(2, False), (5, False), (6, True), (100, True)])
def test_top5_is_given_where_it_means_something(classes: int, given_: bool) -> None:
    random = np.random.default_rng(0)
    predictions = predictions_of(random.integers(0, classes, 50), random.normal(size=(50, classes)))
    summary = summarize(predictions, names(predictions))
    assert (summary["top5_accuracy"] is not None) == given_
    if given_:
        assert summary["top5_accuracy"] == top_k_accuracy(predictions, 5)


def test_a_class_without_images_or_never_predicted_has_nulls_in_the_right_places() -> None:
    """Class 0: right. 1: never predicted. 2: predicted, without images. 3: neither."""
    logits = np.eye(4)[[0, 0, 2]]
    summary = summarize(predictions_of([0, 0, 1], logits), list("abcd"))
    shown = [(c["accuracy"], c["precision"], c["recall"], c["f1"]) for c in summary["per_class"]]
    assert shown == [(1.0, 1.0, 1.0, 1.0), (0.0, None, 0.0, 0.0), (None, 0.0, None, 0.0), (None, None, None, None)]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_class_accuracies_are_scikit_learns_recalls_and_none_without_images() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 200)
    predictions = Predictions(label, generator.normal(size=(200, 5)).astype(np.float32), np.arange(200))
    found = class_accuracies(predictions, 5)
    expected = recall_score(label, predictions.prediction, labels=range(4), average=None)
    assert found[:4] == pytest.approx(expected.tolist())
    assert found[4] is None
