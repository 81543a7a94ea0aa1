"""A network that may say "I don't know", or name several classes: what it then gets right.

Accuracy against coverage: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification"; sets of names:
split conformal prediction with the probability of the true class as its score (Sadinle, Lei and Wasserman 2019, "Least
ambiguous set-valued classifiers with bounded error levels").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import intervals, standing
from vgg_ddp.analysis.calibration import FEWEST_TO_FIT
from vgg_ddp.analysis.predictions import Predictions

SURENESS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # below which it does not answer
PROMISED = 0.9  # share of images whose class is to be in the set of names
POINTS = 100  # of the curve


def describe(predictions: Predictions, validation: Predictions | None, reason: str) -> dict[str, Any]:
    """Everything about it.

    Args:
        validation: predictions on images held out from training, for the sets of names; None, and `reason` which ones or why.
    """
    sure = np.nan_to_num(predictions.probabilities.max(axis=1).astype(np.float64))
    right = predictions.prediction == predictions.label
    described = {"thresholds": thresholds(sure, right), "curve": curve(sure, right), "sets": None, "sets_from": reason}
    if validation is None or not np.isfinite(validation.logits).all():
        return described
    if len(validation.label) < FEWEST_TO_FIT:
        return {**described, "sets_from": f"{reason}, fewer than the {FEWEST_TO_FIT} that it takes"}
    return {**described, "sets": sets(predictions, validation)}


def thresholds(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """For each of `SURENESS`: how many images it answers with at least that probability, and the accuracy of these answers.

    Args:
        sure: the probability of each answer, [n].
        right: whether it is the label, [n].
    """
    rows = []
    for sureness in SURENESS:
        answered, correct = int((sure >= sureness).sum()), int(right[sure >= sureness].sum())
        rows.append(
            {
                "sureness": sureness,
                "answered": answered,
                "coverage": answered / len(sure),
                "accuracy": correct / answered if answered else None,
                "accuracy_interval": intervals.wilson(correct, answered),
            }
        )
    return rows


def curve(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, list[float]]:
    """The accuracy of its surest answers, against their share of the images, and the least probability among them.

    Answers of equal probability are taken together.
    """
    order = np.argsort(-sure, kind="stable")
    last = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))  # the last answer of each distinct probability
    wanted = np.unique(np.linspace(0, len(last) - 1, POINTS).round().astype(np.int64))
    ends = last[wanted]
    accuracy = np.cumsum(right[order])[ends] / (ends + 1)
    return {
        "coverage": ((ends + 1) / len(sure)).tolist(),
        "accuracy": accuracy.tolist(),
        "sureness": sure[order][ends].tolist(),
    }


def smallest_probability(validation: Predictions, promised: float) -> float:
    """The least probability at which a class is named, so that `promised` of images like these, or more, get the true one.

    The ceil((n + 1) promised)-th largest probability of the true class among n images; 0, all classes, where that is beyond n.
    """
    scores = np.sort(true_probabilities(validation))[::-1]
    place = math.ceil((len(scores) + 1) * promised)
    return float(scores[place - 1]) if place <= len(scores) else 0.0


def true_probabilities(predictions: Predictions) -> NDArray[np.float64]:
    """The probability of the true class of each image, [n]."""
    return np.exp(predictions.log_probabilities)[np.arange(len(predictions.label)), predictions.label]


def sets(predictions: Predictions, validation: Predictions) -> dict[str, Any]:
    """The sets of names on the images of `predictions`, made with those of `validation`: how often the true class is in them.

    Returns: `coverage` with its interval, `names` in the mean, the shares of images with one name and with none, and by class
    the coverage, with `worse`: the classes that are covered less than the others by more than chance.
    """
    least = smallest_probability(validation, PROMISED)
    named = np.exp(predictions.log_probabilities) >= least
    sizes, covered = named.sum(axis=1), named[np.arange(len(named)), predictions.label]
    images = np.bincount(predictions.label, minlength=named.shape[1])
    of_class = np.bincount(predictions.label[covered], minlength=named.shape[1])
    return {
        "promised": PROMISED,
        "least_probability": least,
        "images": len(validation.label),
        "coverage": float(covered.mean()),
        "coverage_interval": intervals.wilson(int(covered.sum()), len(covered)),
        "names": float(sizes.mean()),
        "one_name": float((sizes == 1).mean()),
        "no_name": float((sizes == 0).mean()),
        "class_coverage": [float(c / n) if n else None for c, n in zip(of_class, images)],
        "worse": sorted(standing.of_counts(of_class, images).unlike("worse"), key=lambda k: of_class[k] / images[k]),
    }
