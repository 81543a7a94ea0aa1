"""What is taken for what."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.significance import CHANCE

Counts: TypeAlias = NDArray[np.int64]


def recall(confusion: Counts) -> NDArray[np.float64]:
    """Share of each class that was named correctly, [classes]; NaN for a class without images."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)


def most_missed(confusion: Counts) -> int | None:
    """The class with most misses; None where nothing was missed."""
    misses = confusion.sum(axis=1) - np.diag(confusion)
    return int(misses.argmax()) if misses.any() else None


def taken_for(confusion: Counts, true: int) -> list[tuple[int, int]]:
    """What the missed images of class `true` were taken for: (class, images), most frequent first."""
    row = confusion[true].copy()
    row[true] = 0
    return [(int(k), int(row[k])) for k in np.argsort(-row, kind="stable") if row[k]]


def leading(answers: list[tuple[int, int]]) -> list[int]:
    """The most frequent of `taken_for`'s answers, and those less frequent by no more than chance (an exact binomial test)."""
    from scipy.stats import binomtest  # slow to import

    most = answers[0][1]
    alike = takewhile(lambda answer: binomtest(most, most + answer[1], 0.5).pvalue >= CHANCE, answers[1:])
    return [answers[0][0], *(k for k, _ in alike)]


def cumulative(confusion: Counts, true: int, classes: list[str], most: int) -> list[dict[str, Any]]:
    """`taken_for` with each answer's share of the misses, alone and together with those before it."""
    answers = taken_for(confusion, true)
    misses, together = sum(count for _, count in answers), 0
    rows = []
    for k, count in answers[:most]:
        together += count
        rows.append({"name": classes[k], "images": count, "share": count / misses, "together": together / misses})
    return rows


def most_frequent(confusion: Counts, most: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions: (true class, predicted class, images), of equals the lower classes first."""
    mistakes = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, mistakes.shape))
    return [(int(i), int(j), int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def most_confused_pairs(confusion: Counts, most: int) -> list[tuple[int, int]]:
    """The pairs of classes that are taken for one another most often, either way; the lower class first in each."""
    both = np.triu(confusion + confusion.T, k=1)
    order = np.argsort(-both, axis=None, kind="stable")[:most]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, both.shape)) if both[i, j]]
