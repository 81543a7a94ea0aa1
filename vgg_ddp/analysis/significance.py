"""Whether one network is better than another on the same images, or only luckier."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.intervals import wilson

DRAWS = 10_000  # of the bootstrap
NO_ERROR = 1e-12  # a standard error below this is rounding: all figures are equal
CHANCE = 0.05  # below this p-value a difference is called more than chance


@dataclass(frozen=True)
class Difference:
    """What changes from a first network to a second on the same images.

    Attributes:
        images: how many there are; `only_first`, `only_second`: named correctly by one of the two alone.
        difference: accuracy of the second less that of the first.
        interval: the bootstrap interval of the difference over the images, at 95 % unless another level is asked for; wider
            where no image is named by one of the two alone (see `compare`).
        p_value: McNemar's, exact: how often chance alone would bring a difference as large.
    """

    images: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class MeanDifference:
    """What changes from a first recipe to a second in the mean over trainings with different seeds.

    Attributes:
        difference: mean of the second less that of the first; `interval`: Welch's, at 95 %.
        p_value: of Welch's t test: how often seeds alone would bring a difference as large. None, and no interval, where the
            figures differ between the recipes but within neither: a few equal ones do not show that seeds do nothing.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def compare_recipes(first: NDArray[np.float64], second: NDArray[np.float64]) -> MeanDifference:
    """The difference between two recipes, from a figure of each of several trainings: [at least 2] and [at least 2].

    Welch 1947, "The generalization of 'Student's' problem when several different population variances are involved".
    """
    difference = float(second.mean() - first.mean())
    variances = [side.var(ddof=1) / len(side) for side in (first, second)]
    error = float(np.sqrt(sum(variances)))
    if error < NO_ERROR:
        same = abs(difference) < NO_ERROR
        return MeanDifference(difference, (difference, difference) if same else None, 1.0 if same else None)
    freedom = error**4 / sum(variance**2 / (len(side) - 1) for variance, side in zip(variances, (first, second)))
    from scipy.stats import t  # slow to import

    half = float(t.ppf(1 - CHANCE / 2, freedom)) * error
    return MeanDifference(
        difference, (difference - half, difference + half), 2 * float(t.sf(abs(difference) / error, freedom))
    )


def compare(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], outside: float = CHANCE) -> Difference:
    """The difference between two networks, from whether each named each of the images [n >= 1] correctly.

    McNemar 1947 in its exact form: of the images that only one of the two gets right, each would be either's with
    probability 1/2. The bootstrap (Efron 1979) draws pairs of answers, of which only the counts matter, so that a draw is
    one from a multinomial distribution. It never draws what did not occur: if one of the two is alone right for no image, the
    end on its side is moved out by what Wilson's interval allows for zero images, the two distances combined as for
    independent shares (Zou and Donner 2008, "Construction of confidence limits about effect measures"). Where few images
    differ the bootstrap is still too sure: the interval is widened to hold 0 if the exact test does not rule that out.

    Args:
        outside: share of the bootstrap's samples that the interval leaves out.
    """
    images = len(first_right)
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    shares = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(0).multinomial(images, shares, size=DRAWS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / images, [outside / 2, 1 - outside / 2]).tolist()
    difference = (only_second - only_first) / images
    none_of_them = wilson(0, images, NormalDist().inv_cdf(1 - outside / 2))
    assert none_of_them is not None
    unseen = none_of_them[1]
    if not only_first:
        low = difference - math.hypot(difference - low, unseen)
    if not only_second:
        high = difference + math.hypot(high - difference, unseen)
    apart = only_first + only_second
    from scipy.stats import binomtest  # slow to import

    p_value = float(binomtest(only_second, apart, 0.5).pvalue) if apart else 1.0
    if p_value >= outside:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(images, only_first, only_second, difference, (low, high), p_value)


def compare_classes(
    label: NDArray[np.int64], first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], classes: int
) -> list[Difference | None]:
    """`compare` for each class, None for one without images; p-values and intervals corrected for asking so often.

    The correction is Benjamini and Hochberg's (1995): of the classes called different, 5 % are so by chance. The intervals
    are those that go with it (Benjamini and Yekutieli 2005, "False discovery rate-adjusted multiple confidence intervals
    for selected parameters"): of those of the classes called different, 5 % miss the truth.
    """
    pairs = {k: (first_right[label == k], second_right[label == k]) for k in range(classes) if (label == k).any()}
    if not pairs:
        return [None] * classes
    from scipy.stats import false_discovery_control  # slow to import

    corrected = dict(zip(pairs, false_discovery_control([compare(*pair).p_value for pair in pairs.values()]).tolist()))
    different = sum(p_value < CHANCE for p_value in corrected.values())
    outside = CHANCE * max(different, 1) / len(pairs)
    return [replace(compare(*pairs[k], outside), p_value=corrected[k]) if k in pairs else None for k in range(classes)]
