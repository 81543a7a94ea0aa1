"""Looks at an image file before it is stored: can it be read, and is it what its name says?"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from vgg_ddp.data.splits import decode_image

TINY = 8  # pixels: a shorter side below this is unusual
HUGE = 20e6  # pixels: an image of more is unusual
EXTENSIONS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
MODES = {
    "L": "is greyscale",
    "1": "is black and white",
    "P": "has a palette",
    "CMYK": "is CMYK",
    "YCCK": "is CMYK",
    "LA": "is greyscale with an alpha channel, which is dropped",
    "PA": "has an alpha channel, which is dropped",
    "RGBA": "has an alpha channel, which is dropped",
    "I": "has 16 bits",
    "I;16": "has 16 bits",
    "I;16B": "has 16 bits",
}


@dataclass(frozen=True)
class Inspection:
    """The findings on one image.

    Attributes:
        pixels: its RGB pixels, uint8 height x width x 3; None if it cannot be read.
        unreadable: why it cannot be read; empty if it can.
        unusual: what is unusual about an image that can be read; it is converted to 8-bit RGB when it is decoded.
    """

    pixels: NDArray[np.uint8] | None
    unreadable: str = ""
    unusual: list[str] = field(default_factory=list)


def inspect(key: str, data: bytes) -> Inspection:
    """Decode an image file strictly: damage that a decoder would ignore or warn of makes it unreadable."""
    if not data:
        return Inspection(None, "the file is empty")
    try:
        pixels = decode_image(data)
        with Image.open(io.BytesIO(data)) as image:
            kind, mode, frames = image.format or "", image.mode, getattr(image, "n_frames", 1)
        if kind in ("JPEG", "MPO") and mode in ("RGB", "L"):
            simplejpeg.decode_jpeg(data, strict=True)  # Pillow and DALI are silent about corrupt data
    except Exception as error:  # whatever a decoder raises of a broken file
        return Inspection(None, str(error).strip() or type(error).__name__)
    unusual = [MODES[mode]] if mode in MODES else []
    if frames > 1 and kind != "MPO":  # a camera's preview beside its picture is no animation
        unusual.append(f"is animated: the first of {frames} frames is taken")
    suffix = PurePosixPath(key).suffix.lower()
    if suffix not in EXTENSIONS.get("JPEG" if kind == "MPO" else kind, (suffix,)):
        unusual.append(f"is a {kind} file named {suffix}")
    height, width = pixels.shape[:2]
    if min(height, width) < TINY:
        unusual.append(f"is only {width} x {height} pixels")
    if height * width > HUGE:
        unusual.append(f"is {height * width / 1e6:.0f} megapixels large")
    return Inspection(pixels, "", unusual)
