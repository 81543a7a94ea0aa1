"""What every source of images comes down to: classes, splits, and the images one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Image:
    """One image of a source, on its way into a dataset.

    Attributes:
        key: its path in the source ("train/cat/0001.jpg").
        split: one of `SPLITS`.
        label: its class.
        data: the file's bytes; empty where the source has pixels.
        pixels: uint8 height x width x 3, which are to be encoded; None where the source has files.
    """

    key: str
    split: str
    label: int
    data: bytes
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Pixels:
    """Decoded images of one size, uint8 n x height x width x 3, and their classes, int64[n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class PixelSource:
    """Images of one size, decoded.

    Attributes:
        groups: classes by the name of the group that they belong to.
        origin: where they came from.
        path: the same in messages.
        remarks: what a person should know of it, a line each.
    """

    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    splits: dict[str, Pixels]
    origin: dict[str, Any]
    path: str
    remarks: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split that there is."""
        return {split: len(pixels.labels) for split, pixels in self.splits.items()}

    def read(self) -> Iterator[Image]:
        """Every image, split after split."""
        for split, pixels in self.splits.items():
            for i, (image, label) in enumerate(zip(pixels.images, pixels.labels)):
                yield Image(f"{split}/{i:08d}", split, int(label), b"", image)


@dataclass(frozen=True)
class FileSource:
    """Image files by key. For the attributes that are not here see `PixelSource`.

    Attributes:
        keys: split and class of each file.
        files: yields key and bytes of each, in the source's own order; may yield others, which are passed over.
    """

    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    keys: dict[str, tuple[str, int]]
    files: Callable[[], Iterable[tuple[str, bytes]]]
    origin: dict[str, Any]
    path: str
    remarks: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split that there is."""
        found = Counter(split for split, _ in self.keys.values())
        return {split: found[split] for split in SPLITS if found[split]}

    def read(self) -> Iterator[Image]:
        """Every image, in the source's own order.

        Raises:
            UserError: a file that cannot be read, or a damaged archive.
        """
        for key, data in self.files():
            if key in self.keys:
                yield Image(key, *self.keys[key], data)


Source = PixelSource | FileSource
