"""Mean, deviation and covariance of the pixels of a data set."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

PIXELS_AT_ONCE = 2**20


class Moments:
    """Mean, standard deviation and covariance of the channels over all pixels, in units of 0 to 255.

    The sums are integers, so the order of the images makes no difference. Threads may share it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = np.zeros(3, dtype=np.int64)
        self._products = np.zeros((3, 3), dtype=np.int64)
        self._lock = threading.Lock()

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add images, uint8 [..., 3]."""
        flat = pixels.reshape(-1, 3)
        total = flat.sum(axis=0, dtype=np.int64)
        products = np.zeros((3, 3), dtype=np.int64)
        for start in range(0, len(flat), PIXELS_AT_ONCE):  # whole numbers below 2^53 are exact in float64, and fast
            chunk = flat[start : start + PIXELS_AT_ONCE].astype(np.float64)
            products += (chunk.T @ chunk).astype(np.int64)
        with self._lock:
            self._count += len(flat)
            self._sum += total
            self._products += products

    @property
    def mean(self) -> list[float]:
        """Of each channel."""
        return (self._sum / self._count).tolist()

    @property
    def covariance(self) -> list[list[float]]:
        """Of the channels, 3 x 3."""
        mean = self._sum / self._count
        return (self._products / self._count - np.outer(mean, mean)).tolist()

    @property
    def std(self) -> list[float]:
        """Of each channel; at least 0.001."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 1e-6)).tolist()  # not 0 for a constant channel
