"""Pictures, folders of them and tars, made from generated pixels."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
EXIF_ORIENTATION = 0x0112


def noise(height: int, width: int, seed: int) -> Pixels:
    """Pixels that no decoder, crop or flip can confuse: each is drawn independently."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int) -> Pixels:
    """Soft patches of colour, as smooth as a photograph, for measuring interpolation."""
    small = Image.fromarray(noise(5, 6, seed))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: NDArray[Any] | Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def oriented(pixels: Pixels, orientation: int, kind: str = "JPEG") -> bytes:
    """A picture whose EXIF orientation asks the reader to turn or mirror it."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encode(pixels, kind, exif=exif)


def png16(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a channel, grey (height x width) or RGB (height x width x 3), by the specification."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def jpegs(counts: Mapping[str, int], size: tuple[int, int] | None = (32, 32), kind: Any = noise) -> dict[str, bytes]:
    """JPEG files by key; `counts` gives the number in each folder. If `size` is None, their sizes differ."""
    files = {}
    for folder, count in counts.items():
        for i in range(count):
            number = len(files)
            height, width = size or (40 + 5 * (number % 4), 40 + 7 * (number % 5))
            files[f"{folder}/{i:03d}.jpg"] = encode(kind(height, width, number), quality=90)
    return files


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for key, data in files.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], compression: str = "") -> Path:
    """A tar of `files` in their order; `compression` is "", "gz", "bz2" or "xz"."""
    with tarfile.open(path, f"w:{compression}") as archive:
        for key, data in files.items():
            member = tarfile.TarInfo(key)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
