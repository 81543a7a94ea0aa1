"""Confidence intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist

QUANTILE = NormalDist().inv_cdf(0.975)  # of an interval at 95 %

Interval = tuple[float, float]


def wilson(count: int, total: int, quantile: float = QUANTILE) -> Interval | None:
    """Wilson's score interval of `count` out of `total` (Wilson 1927); None if `total` is 0.

    By its formula: scipy's `binomtest` computes a p-value with it, which takes 200 times as long.

    Args:
        quantile: of the standard normal distribution, at the interval's upper end.
    """
    if total == 0:
        return None
    share = count / total
    centre = (share + quantile**2 / (2 * total)) / (1 + quantile**2 / total)
    half = quantile / (1 + quantile**2 / total) * math.sqrt(share * (1 - share) / total + (quantile / (2 * total)) ** 2)
    return 0.0 if count == 0 else centre - half, 1.0 if count == total else centre + half


def difference(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """Newcombe's interval of the first share less the second, each a count and its total of at least 1.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17,
    method 10: from both shares' Wilson intervals, so that shares of 0 or 1 have one with width too.
    """
    share, other = first[0] / first[1], second[0] / second[1]
    ends, other_ends = wilson(*first), wilson(*second)
    assert ends is not None and other_ends is not None
    apart = share - other
    low = apart - math.hypot(share - ends[0], other_ends[1] - other)
    return low, apart + math.hypot(ends[1] - share, other - other_ends[0])


def f1(true_positives: int, false_positives: int, false_negatives: int) -> Interval | None:
    """The interval of an F1 score; None where the class was neither shown nor answered.

    F1 = 2 J / (1 + J) rises with J = TP / (TP + FP + FN), which is a share: the ends are those of J's Wilson interval,
    carried over (Hand, Christen and Kirielle 2021, "F*: an interpretable transformation of the F-measure").
    """
    ends = wilson(true_positives, true_positives + false_positives + false_negatives)
    return None if ends is None else (2 * ends[0] / (1 + ends[0]), 2 * ends[1] / (1 + ends[1]))
