"""Which classes stand out: named correctly more or less often than the others together, by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.confusions import Counts
from vgg_ddp.analysis.significance import CHANCE

FEWEST = 10  # images of a class that can stand out

Verdict: TypeAlias = Literal["better", "worse", "as the others", "too few images", "no images"]


@dataclass(frozen=True)
class Standing:
    """How each class stands against all others together.

    Attributes:
        verdicts: of each class.
        p_values: of each class, corrected for their number: if all classes were equal, any would be below 0.05 in at
            most 5 % of data sets. 1 where there are too few images.
        best, worst: the classes that stand out, the most extreme first; the others here cannot be told from it.
    """

    verdicts: list[Verdict]
    p_values: list[float]
    best: list[int]
    worst: list[int]

    def unlike(self, verdict: Verdict) -> list[int]:
        """The classes with this verdict."""
        return [k for k, found in enumerate(self.verdicts) if found == verdict]


def of_classes(confusion: Counts) -> Standing:
    """The standing of the classes of a confusion matrix."""
    return of_counts(np.diag(confusion), confusion.sum(axis=1))


def of_counts(right: NDArray[np.int64], images: NDArray[np.int64]) -> Standing:
    """The standing of classes of which `right` [classes] of `images` [classes] are named correctly.

    Each class against the others by Fisher's exact test, corrected by Holm (1979, "A simple sequentially rejective multiple
    test procedure").
    """
    judged = images >= FEWEST
    p_values = np.ones(len(images))
    p_values[judged] = holm(against_the_others(right, images)[judged])
    share = right / np.maximum(images, 1)
    high = share > (right.sum() - right) / np.maximum(images.sum() - images, 1)
    verdicts: list[Verdict] = [
        "no images"
        if not images[k]
        else "too few images"
        if images[k] < FEWEST
        else "as the others"
        if p_values[k] >= CHANCE
        else "better"
        if high[k]
        else "worse"
        for k in range(len(images))
    ]
    best, worst = (
        sorted((k for k, found in enumerate(verdicts) if found == verdict), key=lambda k: sign * share[k])
        for verdict, sign in (("better", -1), ("worse", 1))
    )
    return Standing(verdicts, p_values.tolist(), *(_alike(found, right, images) for found in (best, worst)))


def against_the_others(right: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
    """P-values of Fisher's exact test of each class against all others together; 1 for one of fewer than `FEWEST` images."""
    from scipy.stats import hypergeom  # slow to import

    judged = np.flatnonzero(images >= FEWEST)
    p_values = np.ones(len(images))
    if len(judged) > 1:
        drawn = hypergeom(images.sum(), right.sum(), images[judged])
        tails = np.minimum(drawn.cdf(right[judged]), drawn.sf(right[judged] - 1))
        p_values[judged] = np.minimum(1.0, 2 * tails)
    return p_values


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values corrected for their number."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)))
    return corrected


def _alike(classes: list[int], right: NDArray[np.int64], images: NDArray[np.int64]) -> list[int]:
    """The first of `classes`, and those whose accuracy differs from the first's by no more than chance."""
    from scipy.stats import fisher_exact

    def differs(k: int) -> bool:
        counts = [[right[one], images[one] - right[one]] for one in (classes[0], k)]
        return bool(fisher_exact(counts).pvalue < CHANCE)

    return [k for k in classes if k == classes[0] or not differs(k)]
