"""Nearest images, doubtful training labels, what a network relies on, slices and the map, against other people's code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from tests.support.runs import random_logits, unit
from vgg_ddp.analysis import neighbours, projection, reliance, slices
from vgg_ddp.analysis.budget import BUDGETS, spread
from vgg_ddp.analysis.intervals import wilson
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.standing import holm


def test_nearest_images_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    images, others = (unit(rng.normal(size=(count, 24))) for count in (1200, 300))
    found = neighbours.nearest(images, others, 5)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(others.astype(np.float32))
    cosine = images.astype(np.float64) @ others.astype(np.float64).T
    distances, _ = reference.kneighbors(images.astype(np.float32))
    np.testing.assert_allclose(
        1 - np.take_along_axis(cosine, found, axis=1), distances, atol=1e-3
    )  # the vectors are only nearly of length 1
    own = neighbours.nearest(others, others, 4, themselves=True)
    reference = NearestNeighbors(n_neighbors=4, metric="cosine").fit(others.astype(np.float32))
    assert (own == reference.kneighbors(return_distance=False)).mean() > 0.99  # all but ties in distance
    assert not (own == np.arange(300)[:, None]).any()
    assert neighbours.nearest(images[:3], others[:0], 5).shape == (3, 0)
    assert neighbours.nearest(others[:1], others[:1], 5, themselves=True).shape == (1, 0)


@pytest.mark.parametrize("seen", [True, False])
def test_mistakes_whose_like_was_seen_under_another_name_are_told_from_others(seen: bool) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(10, 32))
    train_labels, label = rng.integers(0, 10, 2000), rng.integers(0, 10, 300)
    prediction = np.where(rng.random(300) < 0.5, label, (label + 3) % 10)
    train = unit(centres[train_labels] + 0.3 * rng.normal(size=(2000, 32)))
    # Mistakes lie among the training images of their wrong answer, or near no class in particular.
    place = centres[prediction] if seen else np.zeros((300, 32))
    predictions = Predictions(label, random_logits(label, prediction, 10), np.arange(300))
    found = neighbours.of_mistakes(predictions, unit(place + 0.3 * rng.normal(size=(300, 32))), train_labels, train)
    low, high = found["wrong_answer_interval"]
    assert found["mistakes"] == 100 and found["wrong_answer_by_chance"] == pytest.approx(0.1, abs=0.01)
    assert (low > 0.9) == seen
    assert seen or low - 0.02 < found["wrong_answer_by_chance"] < high + 0.02


@pytest.mark.parametrize(("mistakes", "low", "high"), [(9, None, None), (30, 0.88, 1.0)])
def test_mistakes_that_are_few_or_all_alike_have_no_interval_without_width(
    mistakes: int, low: float | None, high: float | None
) -> None:
    """All of the nearest have the wrong answer: few mistakes give no interval, more give Wilson's."""
    label = np.zeros(mistakes, np.int64)
    predictions = Predictions(label, random_logits(label, label + 1, 3), np.arange(mistakes))
    train = unit(np.random.default_rng(0).normal(size=(20, 8)))
    found = neighbours.of_mistakes(predictions, unit(np.ones((mistakes, 8))), np.ones(20, np.int64), train)
    assert (found["mistakes"], found["wrong_answer"]) == (mistakes, 1)
    assert found["wrong_answer_interval"] == (None if low is None else pytest.approx((low, high), abs=0.01))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_are_found_among_training_images(seed: int) -> None:
    """2 % of the labels of scikit-learn's digits, by a classifier trained on them: a precision of 0.6 at that count."""
    images, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(truth), len(truth) // 50, replace=False)
    label = truth.copy()
    label[flipped] = (truth[flipped] + rng.integers(1, 10, len(flipped))) % 10
    images = images / 16
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(images, label)
    predictions = Predictions(label, fitted.decision_function(images).astype(np.float32), np.arange(len(label)))
    features = unit(images - images.mean(axis=0))
    near = neighbours.nearest(features, features, neighbours.VOTING, themselves=True)
    first = neighbours.doubtful_training_labels(predictions, near)[: len(flipped)]
    assert np.isin(first, flipped).sum() / len(flipped) >= 0.6
    right = Predictions(truth, predictions.logits, predictions.sample_index)
    assert len(neighbours.doubtful_training_labels(right, near)) < len(flipped) / 2


def test_what_a_change_costs_is_told_from_chance() -> None:
    rng = np.random.default_rng(2)
    unchanged = rng.random(400) < 0.8
    kinds = {"animals": np.arange(400) < 150, "none": np.zeros(400, dtype=bool)}
    right = {"grey": unchanged ^ (rng.random(400) < 0.02), "shuffled": unchanged & (rng.random(400) < 0.4)}
    found = reliance.describe(right, unchanged, kinds)
    for name, of in right.items():
        row = found["changes"][name]
        assert row["accuracy"] == of.mean()
        assert row["difference"] == pytest.approx(of.mean() - unchanged.mean())
        assert row["accuracy_interval"] == wilson(int(of.sum()), 400)
        assert row["kinds"] == {"animals": pytest.approx(of[:150].mean()), "none": None}
    assert found["changes"]["shuffled"]["p_value"] < 1e-10 < 0.05 < found["changes"]["grey"]["p_value"]


def test_slices_are_held_against_the_others_over_all_attributes_at_once() -> None:
    rng = np.random.default_rng(3)
    weather, numbers = rng.choice(["sun", "rain", "fog", ""], 600), rng.normal(size=600)
    right = rng.random(600) < np.where(weather == "fog", 0.4, 0.8)
    columns = {"weather": weather.tolist(), "brightness": [f"{number:.3f}" for number in numbers]}
    found = slices.by_attribute(right, columns)
    rows = {row["value"]: row for row in found["weather"]["values"]}
    assert set(rows) == {"sun", "rain", "fog"} and found["weather"]["left_out"] == (weather == "").sum()
    raw = []
    for name, column in found.items():
        known = weather != "" if name == "weather" else np.ones(600, dtype=bool)
        for row in column["values"]:
            of = weather == row["value"]
            if name == "brightness":
                low, high = (float(end) for end in row["value"].split(": ")[1].split(" to "))
                of = (numbers >= low - 5e-4) & (numbers <= high + 5e-4)
                assert row["images"] == pytest.approx(150, abs=1) == pytest.approx(of.sum(), abs=2)
                continue
            assert (row["images"], row["accuracy"]) == (of.sum(), pytest.approx(right[of].mean()))
            assert row["accuracy_interval"] == wilson(int(right[of].sum()), int(of.sum()))
            assert row["others"] == pytest.approx(right[known & ~of].mean())
            counts = [[right[k].sum(), (~right[k]).sum()] for k in (of, known & ~of)]
            raw.append(fisher_exact(counts).pvalue)
    assert rows["fog"]["stands"] == "worse" and rows["fog"]["p_value"] < 1e-6
    tests = len(raw) + len(found["brightness"]["values"])
    assert rows["fog"]["p_value"] <= tests * 2 * min(raw)  # doubling the smaller tail at most doubles p


def test_equal_slices_are_told_apart_in_one_of_twenty_tables_at_most() -> None:
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(100):
        columns = {f"a{k}": rng.integers(0, 4, 300).astype(str).tolist() for k in range(4)}
        found = slices.by_attribute(rng.random(300) < 0.7, columns)
        false += any(row["stands"] for column in found.values() for row in column["values"])
    assert false <= 9  # 5 are expected at most, with a standard deviation of 2.2


def test_accuracy_where_people_agree_and_where_they_do_not() -> None:
    label = np.array([0, 1, 2, 0, 1, 2])
    prediction = np.array([0, 1, 2, 1, 1, 0])
    counts = np.array([[50, 0, 0], [1, 49, 0], [0, 10, 40], [20, 25, 5], [0, 0, 0], [20, 20, 10]], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = slices.by_agreement(label, prediction, shares)
    assert found["asked"] == 5 and found["mistakes"] == 2
    assert [(row["images"], row["accuracy"]) for row in found["rows"]] == [(2, 1.0), (1, 1.0), (2, 0.0)]
    assert found["people"] == pytest.approx(np.mean([1, 0.98, 0.8, 0.4, 0.2]))
    assert found["shared"] == pytest.approx(np.mean([0.5, 0.4]))
    assert found["shared_by_chance"] == pytest.approx(np.mean([0.1, 0.4]))
    none = slices.by_agreement(label, prediction, np.zeros((6, 3)))
    assert none["asked"] == 0 and none["people"] is None


def test_the_map_keeps_together_what_is_alike_and_is_the_same_every_time() -> None:
    rng = np.random.default_rng(5)
    label = np.arange(120) % 4
    features = unit(4 * np.eye(4, 20)[label] + rng.normal(size=(120, 20)))
    places = projection.layout(features)
    assert places.shape == (120, 2) and places.min() == 0 and places.max() == 1
    np.testing.assert_array_equal(projection.layout(features), places)
    found = projection.describe(features, places, label)
    assert found["same_class"] > 0.9 and found["kept"] > 0.5
    shuffled = projection.describe(features, rng.permutation(places), label)
    assert shuffled["kept"] < 0.3
    assert projection.layout(features[:5]).shape == (0, 2)
    assert (projection.layout(np.repeat(features[:1], 30, axis=0)) == 0.5).all()


def test_budgets_bound_what_is_looked_at() -> None:
    full, small, none = (BUDGETS[name] for name in ("full", "small", "none"))
    assert full.searched(20_000, 512) < 20_000 and full.searched(20_000, 512) ** 2 * 512 <= full.products
    assert none.searched(2_000, 512) == none.changed(10_000, 32, 12) == 0
    for budget in (full, small):
        for side, images in ((32, 10_000), (224, 200), (224, 50_000)):
            count = budget.changed(images, side, 12)
            assert count >= 1 and 12 * count * side**2 <= max(budget.changed_pixels, images * side**2)
    assert small.changed(10, 1000, 12) == 1 == full.changed(10, 1000, 12)  # at least one, however large the images are
    assert spread(10, 3).tolist() == [0, 4, 9] and spread(3, 10).tolist() == [0, 1, 2]
    assert holm(np.array([])).tolist() == []
