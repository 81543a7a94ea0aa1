"""Whether the network is as sure as it should be (Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural
networks")."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.intervals import wilson
from vgg_ddp.analysis.predictions import Predictions, loss

BINS = 15  # as in the paper
HOTTEST = 20.0  # highest temperature tried; the lowest is its inverse
FEWEST_TO_FIT = 100  # images; of fewer the temperature says more about them than about the network
HALF_CHI_SQUARED = 1.9207  # of one degree of freedom at 95 %
DRAWS = 500  # of networks that are exactly as sure as they should be
_AT_ONCE = 5_000_000  # random numbers, 40 MB
NOISE_LEVEL = 0.99  # share of these networks that stay below what is called noise
NEGLIGIBLE = 0.01  # a gap that nobody minds, however certain it is

Verdict: TypeAlias = Literal["calibrated", "too sure", "too modest", "uneven", "no numbers"]


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in bins of equal width (section 2, equation 3).

    Args:
        confidence: probability of each answer, [n]; what is no number counts into the lowest bin.
        right: whether it was right, [n].

    Returns: for each bin ]low, high] its `images` and, where it has some, `confidence`, `accuracy` and `interval`.
    """
    number = _bin_of(confidence)
    rows = []
    for k in range(BINS):
        inside = number == k
        images, correct = int(inside.sum()), int(right[inside].sum())
        rows.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "images": images,
                "confidence": float(confidence[inside].mean()) if images else None,
                "accuracy": correct / images if images else None,
                "interval": wilson(correct, images),
            }
        )
    return rows


def _bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.ceil(np.nan_to_num(confidence) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def noise(confidence: NDArray[np.float64]) -> dict[str, Any]:
    """The calibration error by chance alone: of a network that gives these answers and is exactly as sure as it should be.

    Whether an answer is right is drawn again and again, with the probability that the answer has ("consistency resampling":
    Broecker and Smith 2007, "Increasing the reliability of reliability diagrams").

    Args:
        confidence: probability of each answer, [n >= 1].

    Returns: `error`: the mean of its calibration error; `highest_error`: what `NOISE_LEVEL` of such networks stay below;
    `gaps`: the ends of the interval in which mean confidence less accuracy lies for as many of them.
    """
    order = np.argsort(_bin_of(confidence), kind="stable")
    sure = np.nan_to_num(confidence)[order]
    starts = np.flatnonzero(np.diff(_bin_of(confidence)[order], prepend=-1))
    random, left = np.random.default_rng(0), DRAWS
    errors, gaps = [], []
    while left:
        draws = min(left, max(1, _AT_ONCE // len(sure)))
        surplus = sure - (random.random((draws, len(sure))) < sure)
        of_bins = np.add.reduceat(surplus, starts, axis=1) / len(sure)
        errors.append(np.abs(of_bins).sum(axis=1))
        gaps.append(of_bins.sum(axis=1))
        left -= draws
    outside = (1 - NOISE_LEVEL) / 2
    low, high = np.quantile(np.concatenate(gaps), [outside, 1 - outside])
    return {
        "error": float(np.concatenate(errors).mean()),
        "highest_error": float(np.quantile(np.concatenate(errors), NOISE_LEVEL)),
        "gaps": (float(low), float(high)),
    }


def expected_calibration_error(bins: list[dict[str, Any]]) -> float:
    """Mean gap between confidence and accuracy over the bins, weighed by their images (equation 3)."""
    total = sum(row["images"] for row in bins)
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["images"]) / total


def fit_temperature(validation: Predictions) -> float:
    """The temperature to divide the logits by: the one with the lowest loss on images held out (section 4.2)."""

    def loss_at(log_temperature: float) -> float:
        return loss(at_temperature(validation, float(np.exp(log_temperature))))

    from scipy.optimize import minimize_scalar  # slow to import

    found = minimize_scalar(loss_at, bounds=(-np.log(HOTTEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def temperature_interval(validation: Predictions, temperature: float) -> tuple[float, float]:
    """The 95 % confidence interval of the temperature, from the profile likelihood of the images held out.

    At its ends twice the log-likelihood is lower than at `temperature`, the best, by the quantile of chi squared
    (Wilks 1938).
    """
    from scipy.optimize import brentq  # slow to import

    bound = loss(at_temperature(validation, temperature)) + HALF_CHI_SQUARED / len(validation.label)

    def above(log_temperature: float) -> float:
        return loss(at_temperature(validation, float(np.exp(log_temperature)))) - bound

    best, most = float(np.log(temperature)), float(np.log(HOTTEST))
    low, high = (
        brentq(above, *sorted((best, end)), xtol=1e-4) if above(end) > 0 > above(best) else end for end in (-most, most)
    )
    return float(np.exp(low)), float(np.exp(high))


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same answers, more or less sure."""
    softened = (predictions.logits.astype(np.float64) / temperature).astype(np.float32)
    return Predictions(predictions.label, softened, predictions.sample_index)


def describe(predictions: Predictions, validation: Predictions | None, reason: str) -> dict[str, Any]:
    """Calibration as it is and, where images were held out, after temperature scaling fitted on them.

    Args:
        reason: what the temperature was fitted on, or why there is none.
    """
    none = {"temperature": None, "temperature_interval": None, "scaled": None}
    described = {**_measure(predictions), **none, "temperature_from": reason}
    if validation is None or not np.isfinite(loss(validation)):
        return described
    if len(validation.label) < FEWEST_TO_FIT:
        return {**described, "temperature_from": f"{reason}, fewer than the {FEWEST_TO_FIT} that it takes"}
    temperature = fit_temperature(validation)
    return {
        **described,
        "temperature": temperature,
        "temperature_interval": temperature_interval(validation, temperature),
        "scaled": _measure(at_temperature(predictions, temperature)),
    }


def _measure(predictions: Predictions) -> dict[str, Any]:
    answer = predictions.prediction
    probabilities = np.exp(predictions.log_probabilities)
    confidence, right = probabilities[np.arange(len(answer)), answer], answer == predictions.label
    bins = reliability(confidence, right)
    measured = {
        "expected_calibration_error": expected_calibration_error(bins),
        "noise": noise(confidence),
        "loss": loss(predictions),
        "mean_confidence": float(confidence.mean()),
        "bins": bins,
    }
    return {**measured, "verdict": verdict(measured, float(right.mean()))}


def verdict(measured: dict[str, Any], accuracy: float) -> Verdict:
    """Whether a network is as sure as it should be, as far as these images can tell.

    "uneven": right as often as it is sure over all, but too sure of some answers and too modest about others.
    """
    gap, error = measured["mean_confidence"] - accuracy, measured["expected_calibration_error"]
    low, high = measured["noise"]["gaps"]
    if not np.isfinite(error):
        return "no numbers"
    if not low <= gap <= high and abs(gap) >= NEGLIGIBLE:
        return "too sure" if gap > 0 else "too modest"
    if error > measured["noise"]["highest_error"] and error - measured["noise"]["error"] >= NEGLIGIBLE:
        return "uneven"
    return "calibrated"
