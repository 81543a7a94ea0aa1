"""How much is looked at to say why a network is wrong: bounds on time and memory, and what they leave out, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Budget:
    """The bounds of `analysis.budget`; 0 leaves a part out.

    Attributes:
        name: "full", "small" or "none".
        training_images: how many the network is shown once more, to test what it remembers and to find nearest images.
        products: multiplications in the search for the nearest of these images to each of them.
        changed_images: how many test images are shown changed; `changed_pixels`: how many pixels over all their changes, or as
            many as the test images have, if that is more.
        occluded: mistakes whose parts are hidden one by one.
        mapped: test images on the map.
        compared_pixels: to pay for in the search for near-duplicates, of each split (`data_quality.affordable`).
    """

    name: str
    training_images: int
    products: float
    changed_images: int
    changed_pixels: int
    occluded: int
    mapped: int
    compared_pixels: int

    def searched(self, images: int, width: int) -> int:
        """How many of `images` with `width` features each can be compared with one another."""
        return min(images, int((self.products / max(width, 1)) ** 0.5))

    def changed(self, images: int, side: int, changes: int) -> int:
        """How many of `images` test images of `side` pixels can be shown in so many changes."""
        pixels = max(self.changed_pixels, images * side**2) if self.changed_images else 0
        return min(images, self.changed_images, max(1, pixels // (changes * side**2)))


BUDGETS = {
    "full": Budget("full", 10_000, 5e10, 400, 5_000_000, 9, 1_000, 60_000_000),
    "small": Budget("small", 2_000, 4e9, 100, 1_500_000, 3, 500, 6_000_000),
    "none": Budget("none", 2_000, 0, 0, 0, 0, 0, 6_000_000),
}


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers below `count`, evenly spread."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).astype(np.int64)
