"""Near-duplicates by perceptual hash: test images that the network may have seen in training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # pixels of the small grey pictures that are hashed
MOST_BITS = 10  # of 64 that near-duplicates may differ in
LEAST_CORRELATION = 0.93  # of their grey pixels
LEAST_CONTRAST = 8.0  # standard deviation of grey values, of 255; an even picture resembles every other
_ROWS = 100  # compared at a time, 40 MB for 50,000 others
_CANDIDATES = 10_000  # looked at closely at a time, 80 MB

Pair = tuple[int, int, float]


def grey(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of any size [height, width, 3], or grey ones [height, width], as small grey ones, uint8 [n, 32, 32]."""
    small = []
    for image in images:
        picture = Image.fromarray(image).convert("L")
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.append(np.asarray(picture))
    return np.stack(small) if small else np.empty((0, SIDE, SIDE), np.uint8)


def perceptual_hash(small: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """64 bits a picture, [n, 64]: the lowest 8 x 8 frequencies of its cosine transform, above their median or not.

    Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1; as ImageHash's `phash`.
    """
    from scipy.fft import dctn  # slow to import

    low = dctn(small.astype(np.float64), axes=(1, 2))[:, :8, :8].reshape(len(small), 64)
    return low > np.median(low, axis=1, keepdims=True)


def find(small: NDArray[np.uint8], others: NDArray[np.uint8]) -> list[Pair]:
    """Pairs (i, j, correlation) of a picture of `small` and one of `others` that look alike, the most alike first.

    A pair's hashes differ in at most `MOST_BITS`, and its grey pixels correlate at `LEAST_CORRELATION` or more.
    """
    ours, theirs = (
        np.packbits(perceptual_hash(pictures), axis=1).view(np.uint64)[:, 0] for pictures in (small, others)
    )
    pairs: list[Pair] = []
    for start in range(0, len(ours), _ROWS):
        alike = np.bitwise_count(ours[start : start + _ROWS, None] ^ theirs) <= MOST_BITS
        i, j = np.nonzero(alike)
        i += start
        for candidate in range(0, len(i), _CANDIDATES):
            first, second = (positions[candidate : candidate + _CANDIDATES] for positions in (i, j))
            correlation = (_standard(small[first]) * _standard(others[second])).sum(axis=1)
            kept = correlation >= LEAST_CORRELATION
            pairs += zip(first[kept].tolist(), second[kept].tolist(), correlation[kept].tolist())
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def find_within(small: NDArray[np.uint8]) -> list[Pair]:
    """`find` among the pictures themselves, each pair once."""
    return [pair for pair in find(small, small) if pair[0] < pair[1]]


def _standard(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures as vectors of mean zero and length one, so that products are correlations; even ones as zeros."""
    flat = small.reshape(len(small), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length >= LEAST_CONTRAST * SIDE, flat / np.maximum(length, 1e-9), 0.0)
