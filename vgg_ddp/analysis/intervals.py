"""Confidence intervals of shares."""

from __future__ import annotations

LEVEL = 0.95

Interval = tuple[float, float]


def wilson(count: int, total: int) -> Interval | None:
    """Wilson's score interval of `count` out of `total` (Wilson 1927); None of none."""
    if total == 0:
        return None
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def f1(true_positives: int, false_positives: int, false_negatives: int) -> Interval | None:
    """The interval of an F1 score; None where the class was neither shown nor answered.

    F1 = 2 J / (1 + J) rises with J = TP / (TP + FP + FN), which is a share: the ends are those of J's Wilson interval,
    carried over (Hand, Christen and Kirielle 2021, "F*: an interpretable transformation of the F-measure").
    """
    ends = wilson(true_positives, true_positives + false_positives + false_negatives)
    return None if ends is None else (2 * ends[0] / (1 + ends[0]), 2 * ends[1] / (1 + ends[1]))
