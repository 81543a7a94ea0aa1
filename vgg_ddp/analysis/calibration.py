"""Whether the network is as sure as it should be (Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural
networks")."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.intervals import wilson
from vgg_ddp.analysis.predictions import Predictions, loss

BINS = 15  # as in the paper
HOTTEST = 20.0  # temperatures are sought between its inverse and it


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in bins of equal width (section 2, equation 3).

    Args:
        confidence: probability of each answer, [n]; what is no number counts into the lowest bin.
        right: whether it was right, [n].

    Returns: for each bin ]low, high] its `images` and, where it has some, `confidence`, `accuracy` and `interval`.
    """
    number = np.clip(np.ceil(np.nan_to_num(confidence) * BINS).astype(np.int64) - 1, 0, BINS - 1)
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


def expected_calibration_error(bins: list[dict[str, Any]]) -> float:
    """Mean gap between confidence and accuracy over the bins, weighed by their images (equation 3)."""
    total = sum(row["images"] for row in bins)
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["images"]) / total


def fit_temperature(validation: Predictions) -> float:
    """The temperature that the logits are to be divided by: that of the least loss on images held out (section 4.2)."""

    def loss_at(log_temperature: float) -> float:
        return loss(at_temperature(validation, float(np.exp(log_temperature))))

    from scipy.optimize import minimize_scalar  # slow to import

    found = minimize_scalar(loss_at, bounds=(-np.log(HOTTEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same answers, more or less sure."""
    softened = (predictions.logits.astype(np.float64) / temperature).astype(np.float32)
    return Predictions(predictions.label, softened, predictions.sample_index)


def describe(predictions: Predictions, validation: Predictions | None, reason: str) -> dict[str, Any]:
    """Calibration as it is and, where images were held out, after temperature scaling fitted on them.

    Args:
        reason: what the temperature was fitted on, or why there is none.
    """
    described = {**_measure(predictions), "temperature": None, "temperature_from": reason, "scaled": None}
    if validation is not None and np.isfinite(loss(validation)):
        temperature = fit_temperature(validation)
        described |= {"temperature": temperature, "scaled": _measure(at_temperature(predictions, temperature))}
    return described


def _measure(predictions: Predictions) -> dict[str, Any]:
    answer = predictions.prediction
    probabilities = np.exp(predictions.log_probabilities)
    bins = reliability(probabilities[np.arange(len(answer)), answer], answer == predictions.label)
    return {
        "expected_calibration_error": expected_calibration_error(bins),
        "loss": loss(predictions),
        "mean_confidence": float(probabilities.max(axis=1).mean()),
        "bins": bins,
    }
