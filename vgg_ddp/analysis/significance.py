"""Whether one network is better than another on the same images, or only luckier."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000  # of the bootstrap
CHANCE = 0.05  # below this p-value a difference is called more than chance


@dataclass(frozen=True)
class Difference:
    """What changes from a first network to a second on the same images.

    Attributes:
        images: how many there are; `only_first`, `only_second`: named correctly by one of the two alone.
        difference: accuracy of the second less that of the first.
        interval: 95 % of bootstrap samples of the images lie between these differences.
        p_value: McNemar's, exact: how often chance alone would bring a difference as large.
    """

    images: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def compare(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> Difference:
    """The difference between two networks, from whether each named each of the images [n >= 1] correctly.

    McNemar 1947 in its exact form: of the images that only one of the two gets right, each would be either's with
    probability 1/2. The bootstrap (Efron 1979) draws pairs of answers, of which only the sums count, so that a draw is
    one from a multinomial distribution.
    """
    images = len(first_right)
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    shares = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(0).multinomial(images, shares, size=DRAWS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / images, [0.025, 0.975])
    apart = only_first + only_second
    from scipy.stats import binomtest  # slow to import

    p_value = float(binomtest(only_second, apart, 0.5).pvalue) if apart else 1.0
    return Difference(images, only_first, only_second, (only_second - only_first) / images, (low, high), p_value)


def compare_classes(
    label: NDArray[np.int64], first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], classes: int
) -> list[Difference | None]:
    """`compare` for each class, None for one without images; p-values corrected for asking so often.

    The correction is Benjamini and Hochberg's (1995): of the classes called different, 5 % are so by chance.
    """
    differences = [
        compare(first_right[label == k], second_right[label == k]) if (label == k).any() else None
        for k in range(classes)
    ]
    p_values = [tested.p_value for tested in differences if tested is not None]
    from scipy.stats import false_discovery_control  # slow to import

    corrected = iter(false_discovery_control(p_values)) if p_values else iter(())
    return [tested and replace(tested, p_value=float(next(corrected))) for tested in differences]
