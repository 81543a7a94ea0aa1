"""Every kind of picture that people's folders hold, each 32 x 32, with the pixels that must come out of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin

from tests.support.pictures import Pixels, encode, noise, oriented, png16, smooth

SIDE = 32
PICTURE = smooth(SIDE, SIDE, 1)
GREY = smooth(SIDE, SIDE, 2)[..., 0]
JPEG = encode(PICTURE, quality=90)


def decoded(data: bytes) -> Pixels:
    """What Pillow makes of an ordinary file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def rgb(grey: np.ndarray) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


SEEN = decoded(JPEG)
TURNS = {  # TIFF 6.0, Orientation: where the stored row 0 and column 0 lie
    1: SEEN,
    2: np.fliplr(SEEN),
    3: np.rot90(SEEN, 2),
    4: np.flipud(SEEN),
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, -1),
    7: np.rot90(SEEN, 2).transpose(1, 0, 2),
    8: np.rot90(SEEN),
}


@dataclass(frozen=True)
class Kind:
    """A picture file, and what must come out of it.

    Attributes:
        pixels: what every loader must give; None for a file that cannot be read.
        kept: whether the file is stored as it is.
        remark: a part of what is reported; empty if nothing is.
    """

    data: bytes
    pixels: Pixels | None
    kept: bool = False
    remark: str = ""


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload


def with_segment(marker: int, payload: bytes, jpeg: bytes = JPEG) -> bytes:
    """A JPEG file with an extra segment right after its start."""
    return jpeg[:2] + segment(marker, payload) + jpeg[2:]


def without_segment(marker: int, jpeg: bytes) -> bytes:
    place = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:place] + jpeg[place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") :]


def exif(*entries: tuple[int, int, int, int], order: str = ">", start: int = 8, count: int | None = None) -> bytes:
    """A JPEG file with EXIF data of these entries: tag, type, count, value or offset."""
    mark = {">": b"MM\0*", "<": b"II*\0"}[order]
    directory = struct.pack(f"{order}H", len(entries) if count is None else count)
    for tag, kind, values, value in entries:
        word = f"{order}HH" if kind == 3 and values == 1 else f"{order}I"
        directory += struct.pack(f"{order}HHI", tag, kind, values)
        directory += struct.pack(word, *([value, 0] if word.endswith("HH") else [value]))
    return with_segment(0xE1, b"Exif\0\0" + mark + struct.pack(f"{order}I", start) + directory + bytes(4))


def png(bits: int, colour: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by the specification; `chunks` stand before its pixels."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", SIDE, len(rows), bits, colour, 0, 0, 0)
    framed = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in framed)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def packed_bits(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of values packed at `bits` bits each, the first in the highest bits."""
    each = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
    return [np.packbits(row.reshape(-1)).tobytes() for row in each]


def animation(kind: str, **settings: Any) -> bytes:
    first, *rest = (Image.fromarray(noise(SIDE, SIDE, i)) for i in range(3))
    return encode(first, kind, save_all=True, append_images=rest, **settings)


def transparent(mode: str = "RGBA") -> Image.Image:
    image = Image.fromarray(PICTURE).convert(mode[:-1])
    image.putalpha(Image.fromarray(noise(SIDE, SIDE, 3)[..., 0]))
    return image


def jpeg_kinds() -> Iterator[tuple[str, Kind]]:
    for name in ("jpg", "jpeg", "jpe", "jfif", "JPG", "Jpeg"):
        yield f"suffix.{name}", Kind(JPEG, SEEN, True)
    variants: dict[str, dict[str, Any]] = {
        "4:4:4": {"subsampling": "4:4:4"},
        "4:2:2": {"subsampling": "4:2:2"},
        "4:2:0": {"subsampling": "4:2:0"},
        "4:1:1": {"subsampling": "4:1:1"},
        "progressive": {"progressive": True},
        "progressive 4:2:0": {"progressive": True, "subsampling": "4:2:0"},
        "optimised": {"optimize": True},
        "restart markers": {"restart_marker_blocks": 2},
        "of quality 1": {"quality": 1},
        "of quality 100": {"quality": 100},
        "comment": {"comment": b"hello"},
        "density": {"dpi": (300, 300)},
        "profile": {"icc_profile": bytes(200)},
    }
    for name, settings in variants.items():
        data = encode(PICTURE, **settings)
        yield f"{name}.jpg", Kind(data, decoded(data), True)
    data = simplejpeg.encode_jpeg(PICTURE, colorsubsampling="440")
    yield "4:4:0.jpg", Kind(data, decoded(data), True)
    data = encode(GREY)
    yield "grey.jpg", Kind(data, decoded(data), True, "is greyscale")
    data = encode(GREY, progressive=True)
    yield "progressive grey.jpg", Kind(data, decoded(data), True, "is greyscale")
    yield "without JFIF.jpg", Kind(without_segment(0xE0, JPEG), SEEN, True)
    yield "adobe YCbCr.jpg", Kind(with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\1"), SEEN, True)
    yield "fill bytes.jpg", Kind(JPEG[:2] + b"\xff\xff" + JPEG[2:], SEEN, True)
    data = encode(PICTURE, keep_rgb=True, subsampling="4:4:4")
    yield "stored as RGB.jpg", Kind(data, decoded(data))
    cmyk = encode(Image.fromarray(PICTURE).convert("CMYK"))
    yield "cmyk.jpg", Kind(cmyk, decoded(cmyk), remark="is CMYK")
    yield "cmyk without adobe.jpg", Kind(without_segment(0xEE, cmyk), decoded(cmyk), remark="is CMYK")
    ycck = cmyk.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    yield "ycck.jpg", Kind(ycck, decoded(ycck), remark="is CMYK")
    yield "bytes after the end.jpg", Kind(JPEG + b"surplus" * 20, SEEN, True)
    yield "zeros before the end.jpg", Kind(JPEG[:-2] + bytes(100) + JPEG[-2:], SEEN, remark="surplus bytes")
    yield "text before the end.jpg", Kind(JPEG[:-2] + b"text" * 20 + JPEG[-2:], SEEN, remark="surplus bytes")
    data = encode(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(noise(SIDE, SIDE, 9))])
    yield "two of a camera.jpg", Kind(data, decoded(data), True)
    yield "a jpeg.png", Kind(JPEG, SEEN, True, "is a JPEG file named .png")


def turned_kinds() -> Iterator[tuple[str, Kind]]:
    for number, pixels in TURNS.items():
        yield f"turned {number}.jpg", Kind(exif((0x112, 3, 1, number)), pixels, True)
    yield "turned, little end first.jpg", Kind(exif((0x112, 3, 1, 6), order="<"), TURNS[6], True)
    damaged = {
        "of way 0": (exif((0x112, 3, 1, 0)), 1),
        "of way 9": (exif((0x112, 3, 1, 9)), 1),
        "of way 300": (exif((0x112, 3, 1, 300)), 1),
        "as a long": (exif((0x112, 4, 1, 6)), 6),
        "of two values": (exif((0x112, 3, 2, 0x00060006)), 6),
        "after an offset outside": (exif((0x10F, 2, 900, 60000), (0x112, 3, 1, 6)), 6),
        "before an offset outside": (exif((0x112, 3, 1, 8), (0x13B, 2, 900, 60000)), 8),
        "beside an unknown type": (exif((0x100, 77, 1, 0), (0x112, 3, 1, 3)), 3),
        "beside a huge count": (exif((0x10F, 2, 0xFFFFFFF0, 8), (0x112, 3, 1, 5)), 5),
        "of a cut directory": (exif((0x112, 3, 1, 6), count=40), 6),
        "of a directory outside": (exif((0x112, 3, 1, 6), start=5000), 1),
        "of a directory at 0": (exif((0x112, 3, 1, 6), start=0), 1),
        "of no TIFF": (with_segment(0xE1, b"Exif\0\0garbage garbage"), 1),
        "of nothing": (with_segment(0xE1, b"Exif\0\0"), 1),
        "of a header alone": (with_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08"), 1),
    }
    for name, (data, number) in damaged.items():
        yield f"exif {name}.jpg", Kind(data, TURNS[number], remark="damaged EXIF data")
    twice = exif((0x112, 3, 1, 6))
    yield "exif twice.jpg", Kind(with_segment(0xE1, twice[6 : 6 + 32], twice), TURNS[6])
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    yield "turned by XMP alone.jpg", Kind(with_segment(0xE1, xmp), SEEN, True)
    yield "turned.png", Kind(oriented(PICTURE, 6, "PNG"), np.rot90(PICTURE, -1))
    way = Image.Exif()
    way[0x112] = 8
    yield "turned.webp", Kind(encode(PICTURE, "WEBP", lossless=True, exif=way), np.rot90(PICTURE))
    yield "turned.tif", Kind(encode(PICTURE, "TIFF", tiffinfo={0x112: 3}), np.rot90(PICTURE, 2))


def png_kinds() -> Iterator[tuple[str, Kind]]:
    rows = [row.tobytes() for row in PICTURE]
    yield "rgb.png", Kind(png(8, 2, rows), PICTURE, True)
    yield "grey.png", Kind(encode(GREY, "PNG"), rgb(GREY), True, "is greyscale")
    for bits in (1, 2, 4):
        few = GREY >> (8 - bits)
        remark = "is black and white" if bits == 1 else "is greyscale"
        yield (
            f"{bits} bits.png",
            Kind(png(bits, 0, packed_bits(few, bits)), rgb(few * (255 // (2**bits - 1))), remark=remark),
        )
    for colours in (2, 16, 200):
        image = Image.fromarray(PICTURE).quantize(colours)
        yield (
            f"palette {colours}.png",
            Kind(encode(image, "PNG"), np.asarray(image.convert("RGB")), remark="has a palette"),
        )
    image = Image.fromarray(PICTURE).quantize(16)
    data = encode(image, "PNG", transparency=bytes(range(16)))
    yield "palette with alpha.png", Kind(data, np.asarray(image.convert("RGB")), remark="has a palette")
    yield "alpha.png", Kind(encode(transparent(), "PNG"), PICTURE, remark="has an alpha channel")
    grey = transparent("LA")
    yield "grey with alpha.png", Kind(encode(grey, "PNG"), rgb(np.asarray(grey)[..., 0]), remark="alpha channel")
    yield "one colour clear.png", Kind(encode(PICTURE, "PNG", transparency=(1, 2, 3)), PICTURE)
    yield "one grey clear.png", Kind(encode(GREY, "PNG", transparency=7), rgb(GREY), remark="is greyscale")
    deep = GREY.astype(np.uint16) * 257
    yield "16 bits grey.png", Kind(png16(deep), rgb(GREY), remark="has 16 bits")
    yield "16 bits.png", Kind(png16(PICTURE.astype(np.uint16) * 257), PICTURE)
    four = np.dstack([PICTURE, GREY]).astype(">u2") * 257
    data = png(16, 6, [row.astype(">u2").tobytes() for row in four])
    yield "16 bits with alpha.png", Kind(data, PICTURE, remark="has an alpha channel")
    yield "gamma.png", Kind(png(8, 2, rows, (b"gAMA", struct.pack(">I", 100_000))), PICTURE, True)
    yield "sRGB.png", Kind(png(8, 2, rows, (b"sRGB", b"\0")), PICTURE, True)
    yield "profile.png", Kind(encode(PICTURE, "PNG", icc_profile=bytes(200)), PICTURE, True)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "hello")
    yield "text.png", Kind(encode(PICTURE, "PNG", pnginfo=text), PICTURE, True)
    yield "bytes after the end.png", Kind(png(8, 2, rows) + b"surplus", PICTURE, True)
    yield "animated.png", Kind(animation("PNG"), noise(SIDE, SIDE, 0), remark="is animated: the first of 3")
    yield "a png.jpg", Kind(png(8, 2, rows), PICTURE, True, "is a PNG file named .jpg")


def other_kinds() -> Iterator[tuple[str, Kind]]:
    for name, data in {
        "lossless.webp": encode(PICTURE, "WEBP", lossless=True),
        "24 bits.bmp": encode(PICTURE, "BMP"),
        "of windows.dib": encode(PICTURE, "DIB"),
        "plain.tif": encode(PICTURE, "TIFF"),
        "lzw.tiff": encode(PICTURE, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
        "colour.ppm": encode(PICTURE, "PPM"),
        "colour.pnm": encode(PICTURE, "PPM"),
        "plain.tga": encode(PICTURE, "TGA"),
        "plain.pcx": encode(PICTURE, "PCX"),
        "plain.qoi": encode(PICTURE, "QOI"),
        "plain.sgi": encode(PICTURE, "SGI"),
    }.items():
        yield name, Kind(data, PICTURE)
    yield "lossless.jp2", Kind(encode(PICTURE, "JPEG2000"), PICTURE, True)
    yield "a stream alone.j2k", Kind(encode(PICTURE, "JPEG2000", no_jp2=True), PICTURE)
    yield "alpha.jp2", Kind(encode(transparent(), "JPEG2000"), PICTURE, remark="has an alpha channel")
    for name, kind, settings in (("lossy.webp", "WEBP", {}), ("jpeg inside.tif", "TIFF", {"compression": "jpeg"})):
        data = encode(PICTURE, kind, **settings)
        yield name, Kind(data, decoded(data))
    data = encode(PICTURE, "AVIF")
    yield "plain.avif", Kind(data, decoded(data))
    yield "a webp.jpg", Kind(encode(PICTURE, "WEBP", lossless=True), PICTURE, remark="is a WEBP file named .jpg")
    yield "a gif.png", Kind(encode(GREY, "GIF"), rgb(GREY), remark="is a GIF file named .png")
    yield "a bmp.jpeg", Kind(encode(PICTURE, "BMP"), PICTURE, remark="is a BMP file named .jpeg")
    yield "alpha.webp", Kind(encode(transparent(), "WEBP", lossless=True, exact=True), PICTURE, remark="alpha channel")
    yield "animated.webp", Kind(animation("WEBP", lossless=True), noise(SIDE, SIDE, 0), remark="the first of 3 frames")
    few = Image.fromarray(PICTURE).quantize(100)
    colours = np.asarray(few.convert("RGB"))
    yield "palette.gif", Kind(encode(few, "GIF"), colours, remark="has a palette")
    yield "clear.gif", Kind(encode(few, "GIF", transparency=3), colours, remark="has a palette")
    yield "palette.bmp", Kind(encode(few, "BMP"), colours, remark="has a palette")
    yield "palette.tif", Kind(encode(few, "TIFF"), colours, remark="has a palette")
    two = Image.fromarray(GREY).convert("1")
    for name, kind in (("two.bmp", "BMP"), ("two.pbm", "PPM"), ("two.tif", "TIFF")):
        settings = {"compression": "group4"} if kind == "TIFF" else {}
        yield name, Kind(encode(two, kind, **settings), np.asarray(two.convert("RGB")), remark="is black and white")
    yield "alpha.bmp", Kind(encode(transparent(), "BMP"), PICTURE)
    yield "alpha.tif", Kind(encode(transparent(), "TIFF"), PICTURE, remark="has an alpha channel")
    yield "alpha.ico", Kind(encode(transparent(), "ICO", sizes=[(SIDE, SIDE)]), PICTURE, remark="has an alpha channel")
    yield "grey.pgm", Kind(encode(GREY, "PPM"), rgb(GREY), remark="is greyscale")
    yield "grey.tif", Kind(encode(GREY, "TIFF"), rgb(GREY), remark="is greyscale")
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    yield "16 bits.tif", Kind(encode(deep, "TIFF"), rgb(GREY), remark="has 16 bits")
    yield "16 bits.pgm", Kind(encode(deep, "PPM"), rgb(GREY), remark="has 16 bits")
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    yield "cmyk.tif", Kind(encode(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB")), remark="is CMYK")
    yield "pages.tif", Kind(animation("TIFF"), noise(SIDE, SIDE, 0), remark="the first of 3")


def unreadable_kinds() -> Iterator[tuple[str, Kind]]:
    for name, data, why in (
        ("empty.jpg", b"", "the file is empty"),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>", "no image of a format that is read"),
        ("zeros.jpg", bytes(500), "no image of a format that is read"),
        ("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image of a format that is read"),
        ("document.jpg", b"%PDF-1.7\n" + bytes(200), "no image of a format that is read"),
        ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "no image of a format that is read"),
        ("link.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "no image of a format"),
        ("half.jpg", JPEG[: len(JPEG) // 2], ""),
        ("half.png", encode(noise(SIDE, SIDE, 0), "PNG")[:1500], "truncated"),
        ("without its end.png", encode(noise(SIDE, SIDE, 0), "PNG")[:-12], "truncated"),
        ("half.webp", encode(noise(SIDE, SIDE, 0), "WEBP")[:300], ""),
        ("half.gif", encode(noise(SIDE, SIDE, 0), "GIF")[:1200], ""),
        ("half.bmp", encode(PICTURE, "BMP")[:1500], ""),
        ("floats.tif", encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
        ("32 bits.tif", encode(Image.fromarray(GREY.astype(np.int32) * 2**20), "TIFF"), "32 bits"),
    ):
        yield name, Kind(data, None, remark=why)


KINDS = dict([*jpeg_kinds(), *turned_kinds(), *png_kinds(), *other_kinds()])
UNREADABLE = dict(unreadable_kinds())
