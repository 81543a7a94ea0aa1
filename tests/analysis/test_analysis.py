"""The analysis against scikit-learn, SciPy, torchmetrics, and counting by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest, fisher_exact
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_sample_images
from sklearn.metrics import adjusted_rand_score, confusion_matrix, log_loss

from tests.analysis.test_predictions import any_predictions, names
from tests.support.pictures import smooth
from tests.support.runs import ANIMALS, VEHICLES
from vgg_ddp.analysis import (
    calibration,
    confusions,
    course,
    duplicates,
    groups,
    intervals,
    labels,
    significance,
    standing,
)
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.summary import describe

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def predictions_like(images: int, classes: int, sharpness: float = 1.0, seed: int = 0) -> Predictions:
    """Answers that are mostly right, and calibrated where `sharpness` is 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.2, (images, classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.minimum((chances.cumsum(axis=1) < random.random((images, 1))).sum(axis=1), classes - 1)
    return Predictions(label, (sharpness * logits).astype(np.float32), np.arange(images))


@given(st.integers(0, 400), st.integers(0, 400))
def test_wilson_is_scipy_s(one: int, other: int) -> None:
    count, total = min(one, other), max(one, other)
    ends = intervals.wilson(count, total)
    if total == 0:
        assert ends is None
        return
    assert ends == pytest.approx(tuple(binomtest(count, total).proportion_ci(0.95, method="wilson")), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ],
)
def test_the_interval_of_a_difference_is_newcombe_s(
    first: tuple[int, int], second: tuple[int, int], ends: tuple[float, float]
) -> None:
    """The examples of his paper's table II."""
    assert intervals.difference(first, second) == pytest.approx(ends, abs=6e-5)


def test_the_interval_of_f1_covers_it_in_95_of_100_draws() -> None:
    """For a class with known outcome probabilities, over 2,000 draws."""
    random = np.random.default_rng(0)
    chances = [0.12, 0.04, 0.06, 0.78]  # true positive, false positive, false negative, neither
    truth = 2 * chances[0] / (2 * chances[0] + chances[1] + chances[2])
    inside = 0
    for hits, false, missed, _ in random.multinomial(500, chances, size=2000):
        low, high = intervals.f1(int(hits), int(false), int(missed)) or (0, 0)
        inside += low <= truth <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
    assert intervals.f1(0, 0, 0) is None


@given(any_predictions())
def test_confusions_are_what_counting_gives(predictions: Predictions) -> None:
    classes = names(predictions)
    confusion = confusion_matrix(predictions.label, predictions.prediction, labels=range(len(classes)))
    pairs = list(zip(predictions.label.tolist(), predictions.prediction.tolist()))
    found = confusions.most_frequent(confusion, 5)
    assert [count for *_, count in found] == sorted((count for *_, count in found), reverse=True)
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    assert all(count == wrong.count((i, j)) for i, j, count in found)
    assert len(found) == min(5, len(set(wrong)))
    for k in range(len(classes)):
        rows = confusions.cumulative(confusion, k, classes, len(classes))
        misses = [pair for pair in wrong if pair[0] == k]
        assert sum(row["images"] for row in rows) == len(misses)
        if misses:
            assert rows[-1]["together"] == 1.0
    for i, j in confusions.most_confused_pairs(confusion, 3):
        assert i < j and wrong.count((i, j)) + wrong.count((j, i)) > 0


def test_equal_classes_have_no_worst_and_no_best() -> None:
    """In 200 networks with a true accuracy of 80 % on each of 100 classes of 50 images."""
    random = np.random.default_rng(0)
    images = np.full(100, 50)
    found = [standing.of_counts(random.binomial(images, 0.8), images) for _ in range(200)]
    assert sum(bool(one.best or one.worst) for one in found) <= 10  # 5 %
    assert min(min(one.p_values) for one in found) < 0.2  # the correction is not so strict that nothing could stand out


def test_a_class_that_is_bad_is_found_and_those_that_are_as_bad_are_named_with_it() -> None:
    random = np.random.default_rng(0)
    chances = np.full(10, 0.9)
    chances[[2, 3]] = 0.5, 0.7
    for _ in range(50):
        found = standing.of_counts(random.binomial(400, chances), np.full(10, 400))
        assert found.worst == [2]  # 3 is worse than the others too, but distinguishable from 2
        assert {2, 3} <= set(found.unlike("worse"))
    right = np.full(10, 360)
    right[[2, 3]] = 200, 203
    assert standing.of_counts(right, np.full(10, 400)).worst == [2, 3]


def test_a_class_with_few_images_is_never_the_worst() -> None:
    right = np.array([0, 0, 999, 999, 999])
    images = np.array([1, standing.FEWEST - 1, 1000, 1000, 1000])
    found = standing.of_counts(right, images)
    assert found.worst == []
    assert found.verdicts[:2] == ["too few images", "too few images"]
    enough = standing.of_counts(np.array([0, 999, 999]), np.array([standing.FEWEST, 1000, 1000]))
    assert enough.worst == [0]
    assert standing.of_counts(np.array([0, 5]), np.array([0, 20])).verdicts == ["no images", "as the others"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=8))
def test_standings_are_fisher_s_test_corrected_step_by_step(counts: list[tuple[int, int]]) -> None:
    right, wrong = np.array(counts).T
    judged = np.flatnonzero(right + wrong >= standing.FEWEST)
    found = standing.of_counts(right, right + wrong)
    if len(judged) < 2:
        return
    tails = []
    for k in judged:
        rest = [right.sum() - right[k], wrong.sum() - wrong[k]]
        one_sided = [fisher_exact([[right[k], wrong[k]], rest], which).pvalue for which in ("less", "greater")]
        tails.append(min(1.0, 2 * min(one_sided)))
    highest, left = 0.0, len(tails)
    for place in np.argsort(tails, kind="stable"):  # Holm: the smallest times the count, the next times one less
        highest, left = max(highest, min(1.0, left * tails[place])), left - 1
        assert found.p_values[judged[place]] == pytest.approx(highest, abs=1e-9)


def test_an_answer_leads_only_where_it_is_given_more_often_than_chance() -> None:
    assert confusions.leading([(4, 3), (2, 2), (1, 1)]) == [4, 2, 1]
    assert confusions.leading([(4, 60), (2, 20), (1, 19)]) == [4]
    assert confusions.leading([(4, 60), (2, 55), (1, 19)]) == [4, 2]
    assert confusions.leading([(4, 1)]) == [4]


def test_groups_are_found_again_in_confusions_made_from_them() -> None:
    """Animals are taken for animals, vehicles for vehicles."""
    vehicles = [0, 1, 8, 9]
    confusion = np.full((10, 10), 1)
    for members in (vehicles, [k for k in range(10) if k not in vehicles]):
        confusion[np.ix_(members, members)] = 20
    np.fill_diagonal(confusion, 800)
    found = groups.find(confusion)
    assert found == [vehicles, [2, 3, 4, 5, 6, 7]]
    assert list(groups.name_found(found, CLASSES)) == [
        "airplane, automobile, ship and 1 more",
        "bird, cat, deer and 3 more",
    ]


def network(images: int, kinship: np.ndarray, seed: int, sureness: float = 2.0) -> Predictions:
    """Answers among ten classes: noise logits, raised for the true class, and for the others by `kinship` [10, 10]."""
    random = np.random.default_rng(seed)
    label = np.arange(images) % 10
    logits = random.normal(0, 1, (images, 10)) + kinship[label]
    logits[np.arange(images), label] += sureness
    return Predictions(label, logits.astype(np.float32), np.arange(images))


def told_groups(kinship: np.ndarray, seed: int) -> dict[str, Any]:
    """The groups reported for a network with 500 validation and 1,000 test images."""
    test, validation = network(1000, kinship, seed), network(500, kinship, seed + 100_000)
    confusion = confusion_matrix(test.label, test.prediction, labels=range(10))
    return groups.found_or_named(confusion, CLASSES, {}, "data set", validation)


@pytest.mark.seconds
def test_networks_without_structure_are_not_told_to_have_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where all errors are alike, nor where some answers are given more often than others."""
    monkeypatch.setattr(groups, "ROUNDS", 2)
    told = [bool(told_groups(np.zeros((10, 10)), seed)["groups"]) for seed in range(100)]
    popular = np.tile(np.linspace(-1, 1, 10), (10, 1))
    told += [bool(told_groups(popular, seed)["groups"]) for seed in range(100)]
    assert sum(told) <= 10  # 5 % of 200
    groups_of_any = {"first": CLASSES[:5], "second": CLASSES[5:]}
    p_values = []
    for seed in range(60):
        test = network(200, popular, seed)
        confusion = confusion_matrix(test.label, test.prediction, labels=range(10))
        p_values.append(groups.judge(confusion, CLASSES, groups_of_any)["together"]["p_value"])
    assert np.mean(np.array(p_values) < 0.05) <= 0.1
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.1)


def test_planted_groups_are_found_and_are_more_than_chance() -> None:
    vehicles = [0, 1, 8, 9]
    animals = [k for k in range(10) if k not in vehicles]
    kinship = np.zeros((10, 10))
    for members in (vehicles, animals):
        kinship[np.ix_(members, members)] = 1.0
    for seed in range(10):
        found = told_groups(kinship, seed)
        assert sorted(sorted(group["classes"]) for group in found["groups"].values()) == [
            sorted(CLASSES[k] for k in members) for members in (vehicles, animals)
        ]
        assert found["groups_from"] == "validation images"
        together = found["groups_together"]
        assert together["within_accuracy"] > together["within_by_chance"] + 0.05


def test_few_validation_images_tell_planted_groups_by_probabilities_where_counts_of_mistakes_do_not() -> None:
    """About 11 of 50 images are misclassified: too few to find groups by, but the probabilities of all images do."""
    is_vehicle = np.isin(np.arange(10), [0, 1, 8, 9])
    kinship = 2.0 * (is_vehicle[:, None] == is_vehicle)

    def likeness_to_planted(found: list[list[int]]) -> float:
        of_class = np.zeros(10)
        for number, members in enumerate(found):
            of_class[members] = number
        return adjusted_rand_score(is_vehicle, of_class)

    by_counts = []
    for seed in range(10):
        test, validation = network(500, kinship, seed), network(50, kinship, seed + 100_000)
        confusion, counts = (
            confusion_matrix(one.label, one.prediction, labels=range(10)) for one in (test, validation)
        )
        told = groups.found_or_named(confusion, CLASSES, {}, "data set", validation)["groups"]
        members = [[CLASSES.index(name) for name in group["classes"]] for group in told.values()]
        assert likeness_to_planted(members) == 1.0
        by_counts.append(likeness_to_planted(groups.find(counts)))
    assert np.mean(by_counts) < 0.8


def test_chance_keeps_errors_in_their_groups_as_often_as_their_sizes_say() -> None:
    """Without structure, 3 of the 9 wrong answers to a vehicle are vehicles, and 5 of those to an animal animals."""
    confusion = np.full((10, 10), 20)
    np.fill_diagonal(confusion, 820)
    judged = groups.judge(confusion, CLASSES, {"vehicles": VEHICLES, "animals": ANIMALS})
    by_chance = [group["within_by_chance"] for group in judged["groups"].values()]
    assert by_chance == pytest.approx([0.82 + 0.18 * 3 / 9, 0.82 + 0.18 * 5 / 9], abs=0.003)
    assert judged["together"]["p_value"] > 0.1
    confusion[0, :] = confusion[:, 0] = 0  # a class that is neither shown nor predicted
    drawn = groups.without_structure(confusion, np.zeros(10, dtype=np.int64))
    assert (drawn == confusion.sum() - np.trace(confusion)).all()


def test_without_validation_images_no_groups_are_looked_for_and_named_ones_are_taken() -> None:
    confusion = np.full((10, 10), 3)
    found = groups.found_or_named(confusion, CLASSES, {}, "data set", None)
    assert found["groups"] == {} and "without images held out for validation" in found["groups_words"]
    named = groups.found_or_named(confusion, CLASSES, {"pets": ["cat", "dog"]}, "configuration", None)
    assert named["groups_from"] == "configuration"
    assert named["groups"]["pets"]["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("confusion", [np.eye(10) * 5, np.zeros((4, 4)), [[3, 1], [1, 3]], np.ones((5, 5))])
def test_no_groups_are_found_where_there_are_none(confusion: object) -> None:
    assert groups.find(np.array(confusion, dtype=np.int64)) == []


@given(any_predictions(smallest=4))
def test_groups_count_images_within_and_across(predictions: Predictions) -> None:
    classes = names(predictions)
    of = {"first": classes[:2], "rest": classes[2:]}
    summary = describe(predictions, classes, of, None, "")
    group_of = np.where(np.arange(len(classes)) < 2, 0, 1)
    expected = confusion_matrix(group_of[predictions.label], group_of[predictions.prediction], labels=[0, 1])
    for row, name in enumerate(of):
        found = summary["groups"][name]
        assert found["images"] == expected[row].sum()
        assert found["within"] == expected[row, row]
        assert list(found["taken_for"].values()) == expected[row].tolist()
        assert found["correct"] == sum(
            a == b for a, b in zip(predictions.label, predictions.prediction) if group_of[a] == row
        )
    assert summary["groups_from"] == "data set"


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_calibration_error_is_torchmetrics_s(classes: int, sharpness: float) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes two seconds

    predictions = predictions_like(2000, classes, sharpness)
    found = calibration.describe(predictions, None, "none")
    probabilities = torch.from_numpy(np.exp(predictions.log_probabilities))
    # torchmetrics puts a confidence of exactly 1 in a bin of its own
    probabilities = probabilities.clamp(max=1 - 1e-12)
    expected = multiclass_calibration_error(
        probabilities, torch.from_numpy(predictions.label), num_classes=classes, n_bins=calibration.BINS, norm="l1"
    )
    assert found["expected_calibration_error"] == pytest.approx(float(expected), abs=1e-6)
    assert sum(row["images"] for row in found["bins"]) == 2000


AWAY_FROM_EDGES = st.floats(0.001, 1.0).filter(
    lambda share: abs(share * calibration.BINS - round(share * calibration.BINS)) > 1e-9
)


@given(st.lists(st.tuples(AWAY_FROM_EDGES, st.booleans()), min_size=1, max_size=60))
def test_bins_are_those_of_scikit_learn(images: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([share for share, _ in images]), np.array([answer for _, answer in images])
    bins = [row for row in calibration.reliability(confidence, right) if row["images"]]
    accuracy, mean = calibration_curve(right, confidence, n_bins=calibration.BINS, strategy="uniform", pos_label=True)
    assert [row["accuracy"] for row in bins] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in bins] == pytest.approx(mean.tolist())


def test_bins_are_open_below_and_closed_above() -> None:
    bins = calibration.reliability(np.array([0.2, 0.2000001, 1.0]), np.array([True, False, True]))
    assert [row["images"] for row in bins if row["images"]] == [1, 1, 1]
    assert bins[2]["high"] == 0.2 and bins[2]["accuracy"] == 1.0
    assert bins[3]["accuracy"] == 0.0 and bins[-1]["images"] == 1


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_network_too_sure(sharpness: float) -> None:
    validation, test = (predictions_like(4000, 10, sharpness, seed) for seed in (1, 2))
    found = calibration.describe(test, validation, "4000 images")
    assert found["temperature"] == pytest.approx(sharpness, rel=0.05)
    probabilities = torch.from_numpy(test.logits / found["temperature"]).double().softmax(dim=1).numpy()
    assert found["scaled"]["loss"] == pytest.approx(log_loss(test.label, probabilities), rel=1e-5)
    assert found["scaled"]["expected_calibration_error"] < 0.02
    if sharpness != 1.0:
        assert found["expected_calibration_error"] > 3 * found["scaled"]["expected_calibration_error"]


@pytest.mark.parametrize(("classes", "images"), [(2, 120), (10, 200)])
def test_a_perfect_network_is_called_calibrated(classes: int, images: int) -> None:
    """One whose confidence is its accuracy by construction, despite the sampling noise of so few images."""
    found = [calibration.describe(predictions_like(images, classes, seed=seed), None, "") for seed in range(200)]
    called = [one["verdict"] for one in found]
    assert called.count("calibrated") >= 190  # 95 %
    errors = np.array([one["expected_calibration_error"] for one in found])
    assert np.mean([one["noise"]["error"] for one in found]) == pytest.approx(errors.mean(), rel=0.1)


@pytest.mark.parametrize(("sharpness", "called"), [(3.0, "too sure"), (0.4, "too modest")])
def test_a_network_that_is_not_calibrated_is_called_what_it_is(sharpness: float, called: str) -> None:
    found = [calibration.describe(predictions_like(500, 10, sharpness, seed), None, "")["verdict"] for seed in range(5)]
    assert found == [called] * 5


def test_what_is_too_sure_of_some_answers_and_too_modest_about_others_is_called_uneven() -> None:
    random = np.random.default_rng(0)
    confidence = random.choice([0.6, 0.9], 4000)
    right = random.random(4000) < 0.75
    bins = calibration.reliability(confidence, right)
    measured = {
        "expected_calibration_error": calibration.expected_calibration_error(bins),
        "noise": calibration.noise(confidence),
        "mean_confidence": 0.75,
    }
    assert calibration.verdict(measured, float(right.mean())) == "uneven"


def test_the_interval_of_the_temperature_holds_the_true_one_in_95_of_100_draws() -> None:
    inside = 0
    for seed in range(100):
        validation = predictions_like(150, 4, 2.0, seed)
        low, high = calibration.temperature_interval(validation, calibration.fit_temperature(validation))
        inside += low <= 2.0 <= high
    assert 90 <= inside <= 99


def test_no_temperature_is_fitted_on_few_images() -> None:
    found = calibration.describe(predictions_like(400, 4), predictions_like(30, 4), "30 images held out for validation")
    assert found["temperature"] is None and found["scaled"] is None
    assert found["temperature_from"] == "30 images held out for validation, fewer than the 100 that it takes"


def test_no_temperature_moves_the_loss_lower() -> None:
    validation = predictions_like(500, 4, 2.0)
    best = calibration.fit_temperature(validation)
    losses = [
        log_loss(validation.label, np.exp(calibration.at_temperature(validation, best * factor).log_probabilities))
        for factor in (1.0, 0.99, 1.01)
    ]
    assert losses[0] == min(losses)


@pytest.mark.parametrize("classes", [2, 10])
def test_doubtful_labels_are_those_of_the_paper_s_equations(classes: int) -> None:
    """Written out image by image, as cleanlab counts and ranks them ("confident_learning", "normalized_margin")."""
    predictions = predictions_like(800, classes, 1.5)
    flipped = np.random.default_rng(3).random(800) < 0.1
    label = np.where(flipped, (predictions.label + 1) % classes, predictions.label)
    probabilities = np.exp(predictions.log_probabilities)
    thresholds = [np.mean([row[k] for row, given_ in zip(probabilities, label) if given_ == k]) for k in range(classes)]
    margins = {}
    for image, (row, given_) in enumerate(zip(probabilities, label)):
        seen = [k for k in range(classes) if row[k] >= thresholds[k] - 1e-6]
        if seen and max(seen, key=lambda k: row[k]) != given_ and max(range(classes), key=lambda k: row[k]) != given_:
            margins[image] = row[given_] - max(row[k] for k in range(classes) if k != given_)
    found = labels.doubtful_labels(label, probabilities)
    assert found.tolist() == sorted(margins, key=lambda image: margins[image])
    assert flipped[found].mean() > flipped.mean()  # a higher share than among all images


@given(any_predictions())
def test_surest_mistakes_are_mistakes_and_sorted(predictions: Predictions) -> None:
    confidence = np.exp(predictions.log_probabilities).max(axis=1)
    found = labels.surest_mistakes(predictions.label, predictions.prediction, confidence)
    assert sorted(found) == np.flatnonzero(predictions.prediction != predictions.label).tolist()
    assert (np.diff(confidence[found]) <= 0).all()


def patches() -> list[np.ndarray]:
    """Parts of scikit-learn's two sample photographs at several scales, [40, 40, 3], shuffled, without flat ones."""
    found = []
    for photo in load_sample_images().images:
        for share in (1.0, 0.7, 0.5, 0.35, 0.25):
            size = int(photo.shape[1] * share), int(photo.shape[0] * share)
            shrunk = np.asarray(Image.fromarray(photo).resize(size))
            rows, columns = (range(0, side - 39, 40) for side in shrunk.shape[:2])
            found += [shrunk[y : y + 40, x : x + 40] for y in rows for x in columns]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[k] for k in order if found[k].mean(axis=2).std() > 15]


def changed(patch: np.ndarray, how: str, random: np.random.Generator) -> np.ndarray:
    """The middle of a patch, [32, 32, 3], altered as in another collection of images."""
    middle = patch[4:36, 4:36]
    if how == "re-encoded":
        file = io.BytesIO()
        Image.fromarray(middle).save(file, "JPEG", quality=40)
        return np.asarray(Image.open(file))
    if how == "recoloured":
        return np.clip(middle * random.uniform(0.6, 1.4, 3) + random.uniform(-30, 30, 3), 0, 255).astype(np.uint8)
    down, across = random.integers(-3, 4, 2)
    moved = patch[4 + down : 36 + down, 4 + across : 36 + across]
    return moved[:, ::-1] if how == "mirrored" else moved


def test_changed_copies_are_found_among_photographs_and_others_are_not() -> None:
    """Among parts of photographs, half of which have a changed copy: recall of at least 0.7 and precision of 0.9."""
    random, pool = np.random.default_rng(0), patches()
    test, others = pool[: len(pool) // 2], pool[len(pool) // 2 :]
    kinds = ["shifted", "mirrored", "re-encoded", "recoloured"]
    planted = [changed(patch, kinds[k % 4], random) for k, patch in enumerate(test[: len(test) // 2])]
    small = duplicates.grey(patch[4:36, 4:36] for patch in test)
    all_others = duplicates.grey([*(patch[4:36, 4:36] for patch in others), *planted])
    found = {(i, j) for i, j, _ in duplicates.find(small, all_others, duplicates.nearest(small, all_others))}
    right = {(k, len(others) + k) for k in range(len(planted))}
    assert len(right) > 50
    assert len(found & right) >= 0.7 * len(right)
    assert len(found & right) >= 0.9 * len(found)
    for kind in range(4):
        of_kind = {pair for pair in right if pair[0] % 4 == kind}
        assert len(found & of_kind) >= 0.7 * len(of_kind), kinds[kind]


def test_neighbours_are_those_that_all_products_give() -> None:
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 256, (count, 32, 32), dtype=np.uint8) for count in (150, 700))

    def blurred(pictures: np.ndarray) -> np.ndarray:
        coarse = pictures.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)
        return coarse

    plain = np.corrcoef(blurred(first), blurred(second))[:150, 150:]
    reflected = np.corrcoef(blurred(first[..., ::-1]), blurred(second))[:150, 150:]
    likeness = np.maximum(plain, reflected)
    found = duplicates.nearest(first, second)
    np.testing.assert_allclose(found.likeness, -np.sort(-likeness, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_array_equal(found.others, np.argsort(-likeness, axis=1)[:, :5])
    np.testing.assert_array_equal(found.mirrored, np.take_along_axis(reflected > plain, found.others, axis=1))
    few = duplicates.nearest(first[:3], second[:2])
    assert few.others.shape == (3, 2)


def test_near_duplicates_among_themselves_are_told_once_and_even_pictures_resemble_nothing() -> None:
    pictures = [smooth(32, 32, seed) for seed in range(40)]
    even = np.full((32, 32, 3), 200, np.uint8)
    within = duplicates.find_within(duplicates.grey([*pictures, pictures[7], even, even]))
    assert [(i, j) for i, j, _ in within] == [(7, 40)]
    none = duplicates.grey([])
    assert duplicates.find(none, duplicates.grey(pictures), duplicates.nearest(none, duplicates.grey(pictures))) == []


def test_mcnemar_is_the_binomial_test_by_hand() -> None:
    first = np.array([True] * 50 + [True] * 9 + [False] * 3 + [False] * 10)
    second = np.array([True] * 50 + [False] * 9 + [True] * 3 + [False] * 10)
    found = significance.compare(first, second)
    tail = sum(np.prod([12 - i for i in range(k)]) / np.prod(range(1, k + 1)) for k in range(4)) / 2**12
    assert found.p_value == pytest.approx(2 * tail)
    assert (found.only_first, found.only_second, found.difference) == (9, 3, pytest.approx(-6 / 72))
    assert found.interval[0] < found.difference < found.interval[1]
    assert significance.compare(first, first).p_value == 1.0


def test_the_bootstrap_interval_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(400) < 0.7, random.random(400) < 0.75
    found = significance.compare(first, second)
    change = second.astype(int) - first
    means = change[random.integers(0, 400, (20_000, 400))].mean(axis=1)
    assert found.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def test_what_was_never_seen_is_not_ruled_out() -> None:
    """With eight images on which both agree, the difference may be a third; 400 narrow it. McNemar's p stays 1."""
    for right in (np.ones(8, bool), np.zeros(8, bool)):
        found = significance.compare(right, right)
        assert found.interval == pytest.approx((-0.324, 0.324), abs=0.001) and found.p_value == 1.0
    many = np.ones(400, bool)
    assert significance.compare(many, many).interval == pytest.approx((-0.0095, 0.0095), abs=1e-4)
    assert significance.compare(many, many, outside=0.001).interval[0] < -0.02


@pytest.mark.parametrize("images", [12, 100, 10_000])
@pytest.mark.parametrize(("gained", "lost"), [(0, 5), (0, 6), (1, 7), (1, 8), (3, 9)])
def test_an_interval_that_leaves_out_zero_is_of_networks_that_differ(images: int, gained: int, lost: int) -> None:
    """By McNemar's exact test of the same answers."""
    order = np.arange(images)
    found = significance.compare(order >= gained, (order >= gained + lost) | (order < gained))
    assert (found.only_second, found.only_first) == (gained, lost)
    assert (found.interval[1] < 0) <= (found.p_value < significance.CHANCE)
    assert found.interval[0] < found.difference < found.interval[1]


@pytest.mark.seconds
def test_equal_networks_seldom_differ_and_better_ones_do() -> None:
    random = np.random.default_rng(0)
    equal = [significance.compare(random.random(300) < 0.8, random.random(300) < 0.8).p_value for _ in range(300)]
    assert np.mean(np.array(equal) < significance.CHANCE) < 0.07
    assert significance.compare(random.random(3000) < 0.7, random.random(3000) < 0.8).p_value < 1e-6
    label = np.repeat(np.arange(3), 100)
    found = significance.compare_classes(label, label >= 0, (label != 1) | (np.arange(300) % 2 == 0), 4)
    assert found[3] is None
    assert [one.p_value < significance.CHANCE for one in found[:3] if one] == [False, True, False]


def test_intervals_of_classes_are_corrected_as_their_p_values_are() -> None:
    """One of 40 classes differs: only its interval excludes zero, and each is wider than an uncorrected one."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(40), 100)
    first = random.random(4000) < 0.7
    second = np.where(label == 7, random.random(4000) < 0.97, random.random(4000) < 0.7)
    found = significance.compare_classes(label, first, second, 40)
    for k, one in enumerate(found):
        assert one is not None
        assert (one.p_value < significance.CHANCE) == (k == 7)
        assert (one.interval[0] > 0 or one.interval[1] < 0) == (k == 7)
        alone = significance.compare(first[label == k], second[label == k]).interval
        assert one.interval[0] < alone[0] and alone[1] < one.interval[1]
    (single,) = significance.compare_classes(label[:100], first[:100], second[:100], 1)
    assert single == significance.compare(first[:100], second[:100])


def test_one_recipe_seldom_seems_better_than_itself_whatever_its_seeds() -> None:
    random = np.random.default_rng(0)
    found = [significance.compare_recipes(*random.normal(0.8, 0.01, (2, 3))) for _ in range(400)]
    assert np.mean([one.p_value < significance.CHANCE for one in found]) <= 0.07
    assert np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found]) >= 0.93
    constant = np.full(3, 0.5)
    assert significance.compare_recipes(constant, constant).p_value == 1.0
    apart = significance.compare_recipes(constant, constant + 0.25)
    assert (apart.difference, apart.interval, apart.p_value) == (
        0.25,
        None,
        None,
    )  # which a tie of both sides does not show


@pytest.mark.parametrize(
    ("first", "highest", "classes", "astray"),
    [
        (2.3, 4.6, 10, False),  # limit: twice the loss of guessing, 2.303, as it began below that
        (2.3, 4.61, 10, True),
        (0.1, 4.6, 10, False),
        (7.0, 13.9, 10, False),  # limit: twice the first loss, if that is more
        (7.0, 14.1, 10, True),
        (6.9, 13.8, 1000, False),  # guessing among 1,000 classes: 6.908
        (6.9, 13.82, 1000, True),
    ],
)
def test_a_training_loss_of_twice_where_it_began_has_gone_astray(
    first: float, highest: float, classes: int, astray: bool
) -> None:
    row = {"split": "train", "scope": "steps", "step": 1, "epoch": 0.25}
    rows = [row | {"loss": None, "skipped": 1}]  # the first step was skipped
    rows += [row | {"step": k, "epoch": k / 4, "loss": loss} for k, loss in ((2, first), (3, highest), (4, 1.0))]
    said = (
        f"The training went astray: its training loss rose to {highest:g} at epoch 0.75, where guessing gives "
        f"{np.log(classes):.2f}. A smaller optimizer.learning_rate or optimizer.clip_norm=1 may mend that."
    )
    assert course.of_training(rows, classes) == [said] * astray
    right = np.diag(np.full(classes, 10))
    assert course.warnings(rows, right) == [said] * astray
    validation = {"split": "validation", "scope": "epoch", "step": 4, "epoch": 1.0}
    assert course.of_training([*rows, validation | {"loss": 9.9}], classes) == [said] * astray  # its own limit
    (worse,) = course.of_training([*rows, validation | {"loss": 100.0}], classes)
    assert "its validation loss rose to 100 at epoch 1.00" in worse


@pytest.mark.parametrize(("classes", "images"), [(2, 50), (10, 300), (100, 500), (2, 1)])
def test_the_summary_is_json_for_any_number_of_classes_and_without_validation(classes: int, images: int) -> None:
    predictions = predictions_like(images, classes)
    summary = describe(predictions, [f"class {k}" for k in range(classes)], {}, None, "nothing was held out")
    assert json.loads(json.dumps(summary, allow_nan=False))["calibration"]["temperature"] is None
    assert summary["calibration"]["temperature_from"] == "nothing was held out"
    assert describe(predictions, [f"class {k}" for k in range(classes)], {}, None, "nothing was held out") == summary


def test_a_network_that_diverged_is_described_all_the_same() -> None:
    predictions = Predictions(np.arange(20) % 4, np.full((20, 4), np.nan, np.float32), np.arange(20))
    summary = describe(predictions, list("abcd"), {}, predictions, "itself")
    assert summary["accuracy"] == 0.25
    assert np.isnan(summary["calibration"]["expected_calibration_error"])
