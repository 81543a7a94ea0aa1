"""Pictures for a page: single ones as PNG, thousands of small ones on a few sheets."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SHEET = 32  # pictures in a row and a column of a sheet
MOST_PIXELS = 10_500_000  # over all sheets: 10,000 pictures of 32 x 32
LARGEST_SIDE = 96
MOST_BYTES = 4_500_000  # over all sheets; 6 MB in base64
QUALITIES = (85, 70, 50, 30, 15)  # of JPEG, the first that fits
LARGEST_SINGLE = 256  # pixels; larger single pictures are shrunk to it
SMOOTH_ABOVE = 64  # pixels; larger pictures are smoothed when enlarged


def single(pixels: Pixels, side: int = LARGEST_SINGLE) -> str:
    """A data URL of an image [height, width, 3]: one so small that its pixels can be told apart as PNG, others as JPEG."""
    return png(pixels, side) if pixelated(pixels) else jpeg(pixels, side)


def png(pixels: Pixels, side: int = LARGEST_SINGLE) -> str:
    """A data URL of an image [height, width, 3], shrunk to `side` pixels if it is larger."""
    file = io.BytesIO()
    _shrunk(pixels, side).save(file, "PNG")
    return _data_url("png", file.getvalue())


def jpeg(pixels: Pixels, side: int = LARGEST_SINGLE) -> str:
    """`png` as JPEG."""
    return _data_url("jpeg", _jpeg(_shrunk(pixels, side), QUALITIES[0]))


def _shrunk(pixels: Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pixelated(pixels: Pixels) -> bool:
    """Whether a picture [height, width, 3] is so small that it is enlarged without smoothing."""
    return max(pixels.shape[:2]) <= SMOOTH_ABOVE


def side_of(count: int, largest: int) -> int:
    """The side in pixels of the squares for `count` pictures of which the largest has a shorter side of `largest`."""
    affordable = math.isqrt(MOST_PIXELS // max(count, 1)) // 8 * 8
    return max(8, min(largest, affordable, LARGEST_SIDE))


def square(pixels: Pixels, side: int) -> Pixels:
    """The centre square of an image [height, width, 3], `side` pixels wide: about what the network sees."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    picture = pixels[top : top + short, left : left + short]
    if short == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def sheets(squares: Sequence[Pixels], side: int) -> list[str]:
    """Squares in reading order on JPEG sheets of `SHEET` x `SHEET`, in base64, in the best quality that fits `MOST_BYTES`."""
    drawn = []
    for start in range(0, len(squares), SHEET * SHEET):
        chunk = np.stack(squares[start : start + SHEET * SHEET])
        rows = -(-len(chunk) // SHEET)
        full = np.zeros((rows * SHEET, side, side, 3), dtype=np.uint8)
        full[: len(chunk)] = chunk
        sheet = full.reshape(rows, SHEET, side, side, 3).swapaxes(1, 2).reshape(rows * side, SHEET * side, 3)
        drawn.append(Image.fromarray(sheet))
    for quality in QUALITIES:
        encoded = [_jpeg(sheet, quality) for sheet in drawn]
        if sum(map(len, encoded)) <= MOST_BYTES:
            break
    return [base64.b64encode(data).decode() for data in encoded]


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()
