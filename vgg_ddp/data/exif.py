"""EXIF data: an image's orientation, read even if other entries are damaged; and JPEG files rewritten to keep only that."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ORIENTATION = 0x0112
# Bytes of a value of each TIFF type, by its number (TIFF 6.0, section 2).
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
START_OF_SCAN, APP1 = 0xDA, 0xE1


@dataclass(frozen=True)
class Exif:
    """The orientation in EXIF data, and whether the data follow the standard.

    Attributes:
        orientation: 1 to 8 (TIFF 6.0); 1 where it says nothing.
        sound: whether each entry of the first directory lies inside, has a known type, and says an orientation that exists.
    """

    orientation: int = 1
    sound: bool = True


def read_exif(tiff: bytes) -> Exif:
    """The orientation in EXIF data, which begins with a TIFF header, whatever damage there is elsewhere in it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return Exif(sound=False)
    (start,) = struct.unpack(f"{order}I", tiff[4:8])
    if start < 8 or start + 2 > len(tiff):
        return Exif(sound=False)
    (count,) = struct.unpack(f"{order}H", tiff[start : start + 2])
    orientation, sound = 1, True
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if place + 12 > len(tiff):
            return Exif(orientation, False)
        tag, kind, values, offset = struct.unpack(f"{order}HHII", tiff[place : place + 12])
        size = TYPE_BYTES.get(kind, 0) * values
        sound &= size > 0 and (size <= 4 or 8 <= offset <= len(tiff) - size)
        if tag == ORIENTATION:
            said = offset if kind == 4 else struct.unpack(f"{order}H", tiff[place + 8 : place + 10])[0]
            sound &= kind == 3 and values == 1 and 1 <= said <= 8
            orientation = said if 1 <= said <= 8 else 1
    return Exif(orientation, sound)


def jpeg_exif(jpeg: bytes) -> Exif | None:
    """What the EXIF data of a JPEG file says, the first where there are several; None where there is none."""
    found = (jpeg[begin + 10 : end] for marker, begin, end in segments(jpeg) if is_exif(jpeg, marker, begin))
    return next((read_exif(tiff) for tiff in found), None)


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG file with the same pixels, and no EXIF data but its orientation."""
    kept = [jpeg[begin:end] for marker, begin, end in segments(jpeg) if not is_exif(jpeg, marker, begin)]
    rest = jpeg[max((end for _, _, end in segments(jpeg)), default=2) :]
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    exif = b"Exif\0\0" + tiff
    packed = b"" if orientation == 1 else struct.pack(">BBH", 0xFF, APP1, 2 + len(exif)) + exif
    return jpeg[:2] + packed + b"".join(kept) + rest


def is_exif(jpeg: bytes, marker: int, begin: int) -> bool:
    """Whether the segment of a JPEG file that begins there is EXIF data."""
    return marker == APP1 and jpeg[begin + 4 : begin + 8] == b"Exif"


def segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment of a JPEG file before its first scan."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker == START_OF_SCAN:
            return
        if marker == 0xFF:  # a fill byte
            end = place + 1
        elif marker in STANDALONE:
            end = place + 2
        else:
            end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        yield marker, place, end
        place = end
