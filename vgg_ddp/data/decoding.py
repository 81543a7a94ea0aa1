"""From the bytes of an image file to its RGB pixels: by which library, which formats are read, and which way is up."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vgg_ddp.data.exif import Exif, jpeg_exif, read_exif, with_orientation

# By Pillow's names, without its readers of documents, films and measurements. TGA, which has no signature, is last.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "DIB": (".dib",),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb"),
    "TGA": (".tga",),
}
warnings.simplefilter(
    "error", Image.DecompressionBombWarning
)  # more than 89 megapixels, as Pillow's documentation advises
SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in FORMATS.values() for suffix in suffixes))
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """An image, decoded.

    Attributes:
        pixels: uint8 height x width x 3, upright.
        kind: Pillow's name of the format.
        mode: Pillow's name for the file's pixel format.
        frames: how many pictures the file has; the first is taken.
        transparent: whether the file has transparency beside its pixels.
        exif: its EXIF data; None where it has none.
    """

    pixels: NDArray[np.uint8]
    kind: str
    mode: str
    frames: int
    transparent: bool
    exif: Exif | None


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """The RGB pixels of an image file, uint8 height x width x 3, upright as its EXIF data says; see `decode`.

    A JPEG file without EXIF data goes directly to libjpeg-turbo, by simplejpeg: the same bits as by Pillow, which
    uses that library too, in a tenth of the time for 32 x 32 pixels. Unusual or damaged files are left to Pillow.
    """
    if data.startswith(b"\xff\xd8") and jpeg_exif(data) is None:
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("YCbCr", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    return decode(data).pixels


def decode(data: bytes) -> Decoded:
    """Decode an image file.

    Raises:
        Exception: whatever Pillow raises for a broken file, or a ValueError.
    """
    exif = None
    if data.startswith(b"\xff\xd8"):
        exif = jpeg_exif(data)
        if exif is not None and not exif.sound:
            data = with_orientation(data, 1)  # Pillow looks into it too, and warns
    try:
        opened = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        raise ValueError(f"it is no image of a format that is read ({', '.join(FORMATS)})") from None
    with opened as image:
        if image.format == "PNG" and b"IEND\xaeB`\x82" not in data:  # Pillow does not check this
            raise ValueError("image file is truncated")
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        image.load()  # a PNG file may have its EXIF data behind its pixels; a TIFF file is turned here
        packed = image.info.get("exif")
        if packed and image.format in ("PNG", "WEBP", "AVIF"):
            exif = read_exif(packed.removeprefix(b"Exif\0\0"))
        kind = "JPEG" if image.format == "MPO" else image.format or ""  # MPO: a camera's picture with a preview
        pixels = _rgb(image, TURNS.get(exif.orientation) if exif else None)
        return Decoded(pixels, kind, mode, 1 if image.format == "MPO" else frames, "transparency" in image.info, exif)


def _rgb(image: Image.Image, turn: Image.Transpose | None) -> NDArray[np.uint8]:
    upright: Image.Image = image if turn is None else image.transpose(turn)
    if upright.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, and it does not say which value is white; save it as 8 or 16 bits"
        )
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                "its pixels have 32 bits, and it does not say which value is white; save it as 8 or 16 bits"
            )
        grey = (values.astype(np.float64) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # Pillow warns if converted directly
    return np.asarray(upright.convert("RGB"))
