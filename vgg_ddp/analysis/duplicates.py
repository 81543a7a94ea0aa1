"""Near-duplicates: pictures that show the same, shifted by some pixels, mirrored, re-encoded or recoloured or not.

Candidates are the nearest neighbours by a small blurred picture, which a shift of some pixels changes little; each is then
looked at pixel by pixel, over all shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # pixels of the small grey pictures that are compared
COARSE = 8  # pixels of the blurred ones
NEIGHBOURS = 5  # of each picture that are looked at closely
MOST_SHIFT = 3  # pixels of `SIDE`, up or down and left or right
LEAST_LIKENESS = 0.5  # correlation of blurred pictures that are looked at closely
LEAST_CORRELATION = 0.88  # of near-duplicates' grey pixels where they overlap, and
LEAST_DETAIL = 0.65  # of their details under the same shift: what is left where a mean over `_BLUR` pixels is taken off
LEAST_CONTRAST = 8.0  # standard deviation of grey values, of 255; an even picture resembles every other
FAINTEST_DETAIL = 1.0  # the same of details
_BLUR = 5
_ROWS = 100  # compared at a time, 40 MB for 50,000 others
_BLOCK = 64  # columns of which the best is looked up first
_CANDIDATES = 1_000  # looked at closely at a time, 30 MB
_INNER = SIDE - 2 * MOST_SHIFT

Pair = tuple[int, int, float]
GoOn = Callable[[], object]  # called now and then, to show that the search goes on


def grey(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of any size [height, width, 3], or grey ones [height, width], as small grey ones, uint8 [n, 32, 32]."""
    small = []
    for image in images:
        if image.shape == (SIDE, SIDE):  # as most are, where there are many
            small.append(image)
            continue
        picture = Image.fromarray(image).convert("L")
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.append(np.asarray(picture))
    return np.stack(small) if small else np.empty((0, SIDE, SIDE), np.uint8)


class Neighbours(NamedTuple):
    """For each picture, those of the others that are most like it when blurred, mirrored or not.

    Attributes:
        others: [n, up to `NEIGHBOURS`], the most alike first.
        likeness: their correlations, and `mirrored`: whether these are of the mirrored picture.
    """

    others: NDArray[np.int64]
    likeness: NDArray[np.float32]
    mirrored: NDArray[np.bool_]


def nearest(
    small: NDArray[np.uint8], others: NDArray[np.uint8], themselves: bool = False, go_on: GoOn = tuple
) -> Neighbours:
    """The neighbours of each of `small` among `others`, exactly.

    Args:
        themselves: both are the same pictures, and none is its own neighbour.
    """
    (even, odd), theirs = _coarse(small), [half.T for half in _coarse(others)]
    kept = min(NEIGHBOURS, len(others))
    blocks = -(-len(others) // _BLOCK)
    parts: list[Neighbours] = []
    for start in range(0, len(small), _ROWS):
        go_on()
        rows = slice(start, start + _ROWS)
        turned = odd[rows] @ theirs[1]  # changes its sign where one of two is mirrored
        likeness = np.full((len(turned), blocks * _BLOCK), -2.0, dtype=np.float32)
        np.add(even[rows] @ theirs[0], np.abs(turned), out=likeness[:, : len(others)])
        if themselves:
            likeness[np.arange(len(turned)), np.arange(start, start + len(turned))] = -2.0
        # the best `kept` lie in the `kept` blocks with the best: much fewer to sort
        best_of_blocks = likeness.reshape(len(turned), blocks, _BLOCK).max(axis=2)
        chosen = np.argsort(-best_of_blocks, axis=1, kind="stable")[:, :kept]
        columns = (chosen[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(len(turned), -1)
        values = np.take_along_axis(likeness, columns, axis=1)
        order = np.lexsort((columns, -values), axis=1)[:, :kept]
        columns = np.minimum(np.take_along_axis(columns, order, axis=1), len(others) - 1)
        values = np.take_along_axis(values, order, axis=1)
        parts.append(Neighbours(columns, values, np.take_along_axis(turned, columns, axis=1) < 0))
    if not parts:
        return Neighbours(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32), np.empty((0, 0), np.bool_))
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts)))


def find(
    small: NDArray[np.uint8], others: NDArray[np.uint8], neighbours: Neighbours, go_on: GoOn = tuple
) -> list[Pair]:
    """Pairs (i, j, correlation) of a picture of `small` and one of its neighbours that show the same, the most alike first.

    Under one of all shifts of up to `MOST_SHIFT` pixels, mirrored or not, their grey pixels correlate at `LEAST_CORRELATION`
    or more where they overlap, and their details at `LEAST_DETAIL`: gradients alone are alike in many pictures.
    """
    i, place = np.nonzero(neighbours.likeness >= LEAST_LIKENESS)
    j, mirrored = neighbours.others[i, place], neighbours.mirrored[i, place]
    pairs: list[Pair] = []
    for start in range(0, len(i), _CANDIDATES):
        go_on()
        part = slice(start, start + _CANDIDATES)
        first, second = small[i[part]].astype(np.float32), others[j[part]].astype(np.float32)
        first = np.where(mirrored[part, None, None], first[..., ::-1], first)
        correlation = _over_shifts(first, second, LEAST_CONTRAST)
        likely = np.flatnonzero((correlation >= LEAST_CORRELATION).any(axis=(1, 2)))
        if len(likely):
            detail = _over_shifts(_details(first[likely]), _details(second[likely]), FAINTEST_DETAIL)
            best = np.where(detail >= LEAST_DETAIL, correlation[likely], 0.0).max(axis=(1, 2))
            alike = best >= LEAST_CORRELATION
            places = likely[alike] + start
            pairs += zip(i[places].tolist(), j[places].tolist(), best[alike].tolist())
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def find_within(small: NDArray[np.uint8], go_on: GoOn = tuple) -> list[Pair]:
    """`find` among the pictures themselves, each pair once."""
    found = find(small, small, nearest(small, small, themselves=True, go_on=go_on), go_on)
    once = {(min(i, j), max(i, j)): correlation for i, j, correlation in reversed(found)}
    return sorted(((i, j, c) for (i, j), c in once.items()), key=lambda pair: (-pair[2], pair[0], pair[1]))


def _coarse(small: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Pictures blurred to 8 x 8: the part that mirroring keeps, and the part whose sign it flips, [n, 32] each.

    The sum of the products of both is the correlation of two pictures; with the second product subtracted it is that of one
    and the other's mirror image. Even pictures are zeros.
    """
    step = SIDE // COARSE
    blurred = small.reshape(-1, COARSE, step, COARSE, step).mean(axis=(2, 4), dtype=np.float32)
    blurred -= blurred.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(blurred, axis=(1, 2), keepdims=True)
    blurred = np.where(length > COARSE, blurred / np.maximum(length, 1e-9), 0.0).astype(np.float32)
    halves = blurred + blurred[..., ::-1], blurred - blurred[..., ::-1]
    return [(half[..., : COARSE // 2] / np.sqrt(np.float32(2))).reshape(-1, COARSE * COARSE // 2) for half in halves]


def _details(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.ndimage import uniform_filter  # slow to import

    blurred: NDArray[np.float32] = uniform_filter(pictures, (0, _BLUR, _BLUR), mode="nearest")
    return pictures - blurred


def _over_shifts(first: NDArray[np.float32], second: NDArray[np.float32], contrast: float) -> NDArray[np.float32]:
    """The correlation of the middle of each first picture with each window of its second one: [n, shifts, shifts].

    All windows at once, as products in the frequency domain. 0 for what has less than `contrast`.
    """
    from scipy.fft import irfft2, rfft2  # slow to import

    middle = first[:, MOST_SHIFT:-MOST_SHIFT, MOST_SHIFT:-MOST_SHIFT]
    middle = middle - middle.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(middle, axis=(1, 2), keepdims=True)
    other = second - second.mean(axis=(1, 2), keepdims=True)
    room = (SIDE, SIDE)

    def in_windows(weights: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = irfft2(np.conj(rfft2(weights, room)) * rfft2(values), room)
        return np.asarray(whole[:, : 2 * MOST_SHIFT + 1, : 2 * MOST_SHIFT + 1])

    box = np.ones((1, _INNER, _INNER), np.float32)
    spread = np.sqrt(np.maximum(in_windows(box, other**2) - in_windows(box, other) ** 2 / _INNER**2, 0.0))
    enough = (length >= contrast * _INNER) & (spread >= contrast * _INNER)
    return np.where(enough, in_windows(middle, other) / np.maximum(length * spread, 1e-9), 0.0)
