"""Rounds that alternate between what is compared, and their statistics.

Other load on a machine affects neighbouring measurements alike. So only what was measured alternately, in one process,
is compared. The first round is warm-up and does not count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, t

REFERENCE = "reference"


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side returns, `rounds` times after a warm-up, the sides taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            rate = side()
            if number:
                rates[name].append(rate)
    return rates


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A bootstrap interval of the median: its percentiles over resamples (Efron & Tibshirani 1993, section 13.3)."""
    if len(values) < 2 or min(values) == max(values):
        return min(values), max(values)
    interval = bootstrap(
        (np.asarray(values),),
        np.median,
        confidence_level=confidence,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(
    rates: list[float],
    unit: str = "images_per_second",
    reference: list[float] | None = None,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """A row: the median with its 95 % interval, the least and the most, and each round's figure.

    Args:
        unit: the median's key in the row.
        reference: the rates of the reference in the same rounds.
    """
    row: dict[str, Any] = {
        unit: statistics.median(rates),
        "interval": list(median_interval(rates)),
        "least": min(rates),
        "most": max(rates),
        "rounds": len(rates),
        "all": rates,
        "unit": unit,
        "higher_is_better": higher_is_better,
    }
    if reference is not None:
        row["reference"] = reference
    return row


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, and the mean's 95 % interval by Student's t; None where there are too few values."""
    mean = statistics.mean(values) if values else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    interval = None
    if mean is not None and deviation is not None:
        half = t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
        interval = [mean - half, mean + half]
    return {"mean": mean, "mean_interval": interval, "standard_deviation": deviation}
