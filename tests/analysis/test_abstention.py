"""How often a network is right when it may abstain from an image, or name several classes."""

from __future__ import annotations

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin

from vgg_ddp.analysis import abstention
from vgg_ddp.analysis.predictions import Predictions


def drawn(images: int, classes: int, seed: int, temperature: float = 1.0) -> Predictions:
    """Labels drawn from softmax(logits), and the logits divided by `temperature`: calibrated only at 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (images, classes)).astype(np.float32)
    probabilities = Predictions(np.zeros(images, np.int64), logits, np.arange(images)).probabilities.astype(np.float64)
    cumulative = probabilities.cumsum(axis=1) / probabilities.sum(axis=1, keepdims=True)
    label = (random.random(images)[:, None] > cumulative).sum(axis=1)
    return Predictions(label, logits / temperature, np.arange(images))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_sets_hold_the_true_class_as_often_as_promised_however_wrong_the_probabilities_are(temperature: float) -> None:
    """On average over many draws of 200 validation and 300 test images; above 0.9 only by rounding to whole images."""
    found = []
    for seed in range(60):
        validation, test = drawn(200, 10, 2 * seed, temperature), drawn(300, 10, 2 * seed + 1, temperature)
        found.append(abstention.sets(test, validation)["coverage"])
    images = 300 * len(found)
    spread = np.sqrt(0.09 / images + 0.09 / (200 * len(found)))  # test variance plus validation variance
    assert 0.9 - 4 * spread <= np.mean(found) <= 0.9 + 1 / 201 + 4 * spread


@pytest.mark.parametrize("images", [10, 99, 100, 1234])
def test_the_least_probability_is_numpy_s_quantile(images: int) -> None:
    """In the authors' formula: the ceil((n + 1)(1 - alpha)) / n quantile of one minus the probability."""
    validation = drawn(images, 5, images)
    scores = 1 - abstention.true_probabilities(validation)
    level = np.ceil((images + 1) * 0.9) / images
    expected = 1 - np.quantile(scores, min(level, 1.0), method="inverted_cdf")
    assert abstention.smallest_probability(validation, 0.9) == pytest.approx(expected if level <= 1 else 0.0, abs=1e-12)


class Answers(ClassifierMixin, BaseEstimator):
    """A fitted five-class classifier for MAPIE, which returns its input as the probabilities."""

    classes_ = np.arange(5)

    def fit(self, images: NDArray[np.float64], labels: NDArray[np.int64]) -> Answers:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        return images

    def predict(self, images: NDArray[np.float64]) -> NDArray[np.int64]:
        return images.argmax(axis=1)


@pytest.mark.parametrize("images", [20, 99, 100, 1234])
def test_the_sets_are_mapie_s(images: int) -> None:
    validation, test = drawn(images, 5, images), drawn(500, 5, images + 1)
    mapie = SplitConformalClassifier(Answers(), confidence_level=0.9, conformity_score="lac", prefit=True)
    mapie.conformalize(np.exp(validation.log_probabilities), validation.label)
    expected = mapie.predict_set(np.exp(test.log_probabilities))[1][:, :, 0]
    found = abstention.sets(test, validation)
    assert found["names"] == pytest.approx(expected.sum(axis=1).mean())
    assert found["coverage"] == pytest.approx(expected[np.arange(500), test.label].mean())
    assert (found["one_name"], found["no_name"]) == tuple((expected.sum(axis=1) == k).mean() for k in (1, 0))


def test_too_few_images_to_promise_anything_name_every_class() -> None:
    validation = drawn(8, 5, 0)
    assert abstention.smallest_probability(validation, 0.9) == 0.0
    assert abstention.sets(drawn(50, 5, 1), validation)["names"] == 5.0
    described = abstention.describe(drawn(50, 5, 1), validation, "8 images held out for validation")
    assert described["sets"] is None and "fewer than the 100" in described["sets_from"]


def by_loop(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[float, float]:
    """Accuracy by coverage, at each distinct confidence."""
    found = {}
    for least in np.unique(sure):
        chosen = sure >= least
        found[float(chosen.mean())] = float(right[chosen].mean())
    return found


def test_the_curve_is_the_accuracy_of_its_surest_answers() -> None:
    random = np.random.default_rng(0)
    sure = random.integers(30, 100, 500) / 100  # with ties, which are accepted or left out together
    right = random.random(500) < sure
    curve, expected = abstention.curve(sure, right), by_loop(sure, right)
    assert dict(zip(curve["coverage"], curve["accuracy"])) == pytest.approx(expected)
    assert (curve["coverage"][-1], curve["accuracy"][-1]) == (1.0, right.mean())
    for row in abstention.thresholds(sure, right):
        chosen = sure >= row["sureness"]
        assert (row["answered"], row["accuracy"]) == (chosen.sum(), right[chosen].mean() if chosen.any() else None)


def test_a_class_that_the_sets_leave_out_is_named_and_equal_ones_are_not() -> None:
    wrong = 0
    for seed in range(60):
        wrong += bool(abstention.sets(drawn(400, 10, 3 * seed), drawn(400, 10, 3 * seed + 1))["worse"])
    assert wrong <= binom.ppf(0.999, 60, 0.05)
    test = drawn(1000, 10, 7)
    missed = np.where(test.label == 4)[0]
    test.logits[missed, 4] = -20
    assert abstention.sets(test, drawn(400, 10, 8))["worse"] == [4]


def test_answers_of_equal_probability_are_one_point() -> None:
    curve = abstention.curve(np.full(7, 0.5), np.array([True] * 3 + [False] * 4))
    assert curve == {"coverage": [1.0], "accuracy": [3 / 7], "sureness": [0.5]}
