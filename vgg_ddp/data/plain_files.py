"""Image files that every decoder decodes to the same pixels, and the rewriting of those that are not.

Pillow, libjpeg-turbo, DALI's decoders and nvJPEG disagree about what few files have: CMYK, palettes, transparency,
16 bits, damaged EXIF data, formats that DALI does not know. That is settled here, once, by Pillow's reading: a dataset
stores plain files only.
"""

from __future__ import annotations

import io

from PIL import Image

from vgg_ddp.data.decoding import Decoded
from vgg_ddp.data.exif import Exif, is_exif, segments, with_orientation

FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive JPEG with Huffman coding
ADOBE = 0xEE


def plain(data: bytes, decoded: Decoded, damaged: bool) -> tuple[bytes, str]:
    """A plain file with the same pixels (`data` itself if it is plain), and its suffix.

    Args:
        damaged: a strict decoder warned of the file.
    """
    ordinary = decoded.mode in ("RGB", "L") and not decoded.transparent and decoded.frames == 1
    if ordinary and not damaged and decoded.kind == "JPEG" and _is_plain_jpeg(data):
        exif = decoded.exif or Exif()
        return (data if exif.sound else with_orientation(data, exif.orientation)), "jpg"
    if ordinary and decoded.exif is None:
        if decoded.kind == "PNG" and data[24:25] == b"\x08":  # bits of a channel
            return data, "png"
        if decoded.kind == "JPEG2000" and data.startswith(b"\0\0\0\x0cjP"):
            return data, "jp2"
    file = io.BytesIO()
    Image.fromarray(decoded.pixels).save(file, "PNG")
    return file.getvalue(), "png"


def _is_plain_jpeg(jpeg: bytes) -> bool:
    """Whether it is 8-bit grey, or YCbCr as every decoder takes it to be."""
    adobe_rgb, exifs, frame = False, 0, b""
    for marker, begin, end in segments(jpeg):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = jpeg[begin + 4 : end] if marker in FRAMES else b""
        elif marker == ADOBE and jpeg[begin + 4 : begin + 9] == b"Adobe":
            adobe_rgb = jpeg[begin + 15] == 0  # its transform: none
        exifs += is_exif(jpeg, marker, begin)
    if len(frame) < 6 or frame[0] != 8 or exifs > 1:
        return False
    components = frame[6::3]
    return len(components) == 1 or (len(components) == 3 and not adobe_rgb and components != b"RGB")
