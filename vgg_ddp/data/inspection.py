"""Looks at an image file before it is stored: can it be read, is it what its name says, and do all decoders read it alike?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from vgg_ddp.data.decoding import FORMATS, SUFFIXES, Decoded, decode
from vgg_ddp.data.plain_files import plain

TINY = 8  # pixels: a shorter side below this is unusual
HUGE = 20e6  # pixels: an image of more is unusual
# What libjpeg says of a file whose pixels end before its end mark: there is something else between, or they went wrong early.
SURPLUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
FEW = 16  # bytes of anything are accepted there; more must be padding or text, else they are the rest of damaged pixels
DEEP = "has 16 bits"
MODES = {
    "L": "is greyscale",
    "1": "is black and white",
    "P": "has a palette",
    "CMYK": "is CMYK",
    "YCCK": "is CMYK",
    "LA": "is greyscale with an alpha channel, which is dropped",
    "PA": "has an alpha channel, which is dropped",
    "RGBA": "has an alpha channel, which is dropped",
    "I": DEEP,
    "I;16": DEEP,
    "I;16B": DEEP,
}


@dataclass(frozen=True)
class Inspection:
    """The findings on one image.

    Attributes:
        pixels: its RGB pixels, uint8 height x width x 3; None if it cannot be read.
        unreadable: why it cannot be read; empty if it can.
        unusual: what is unusual about an image that can be read; it is converted to 8-bit RGB.
        file: what to store of it, which every decoder decodes to `pixels`: its own bytes if they are plain.
        suffix: of that file, without the dot: the one that it came with where that is one of its format.
    """

    pixels: NDArray[np.uint8] | None
    unreadable: str = ""
    unusual: list[str] = field(default_factory=list)
    file: bytes = b""
    suffix: str = ""


def inspect(key: str, data: bytes) -> Inspection:
    """Decode an image file strictly: damage that a decoder would ignore or warn of makes it unreadable."""
    if not data:
        return Inspection(None, "the file is empty")
    try:
        decoded = decode(data)
        surplus = _surplus(data) if decoded.kind == "JPEG" and decoded.mode in ("RGB", "L") else False
        file, suffix = plain(data, decoded, damaged=surplus)
        own = PurePosixPath(key).suffix.lower()
        suffix = own[1:] if file is data and own in FORMATS[decoded.kind] else suffix
    except Exception as error:  # whatever a decoder raises of a broken file
        return Inspection(None, str(error).strip() or type(error).__name__)
    unusual = _remarks(key, decoded)
    if decoded.kind == "PNG" and data[24] == 16 and DEEP not in unusual:  # Pillow's mode shows it for greyscale only
        unusual.insert(0, DEEP)
    if surplus:
        unusual.append("has surplus bytes before its end")
    return Inspection(decoded.pixels, "", unusual, file, suffix)


def _surplus(jpeg: bytes) -> bool:
    """Whether there are bytes between the pixels of a JPEG file and its end mark.

    Raises:
        ValueError: it is damaged, which Pillow and DALI are silent about.
    """
    try:
        simplejpeg.decode_jpeg(jpeg, strict=True)
    except ValueError as error:
        found = SURPLUS.search(str(error))
        if found is None:
            raise
        end = jpeg.rindex(b"\xff\xd9")
        between = jpeg[end - int(found[1]) : end]
        if len(between) > FEW and len(set(between)) > 1 and not between.isascii():
            raise
        return True
    return False


def _remarks(key: str, decoded: Decoded) -> list[str]:
    unusual = [MODES[decoded.mode]] if decoded.mode in MODES else []
    if decoded.transparent and decoded.mode in ("RGB", "L"):
        unusual.append("has a transparent colour, whose transparency is dropped")
    if decoded.frames > 1:
        unusual.append(f"is animated: the first of {decoded.frames} frames is taken")
    suffix = PurePosixPath(key).suffix.lower()
    if suffix in SUFFIXES and suffix not in FORMATS[decoded.kind]:
        unusual.append(f"is a {decoded.kind} file named {suffix}")
    if decoded.exif is not None and not decoded.exif.sound:
        unusual.append("has damaged EXIF data, of which only the way up is kept")
    height, width = decoded.pixels.shape[:2]
    if min(height, width) < TINY:
        unusual.append(f"is only {width} x {height} pixels")
    if height * width > HUGE:
        unusual.append(f"is {height * width / 1e6:.0f} megapixels large")
    return unusual
