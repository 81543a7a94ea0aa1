"""Loaders: from slices of the order to batches of pixels on the device.

One interface, one file each. All are fed by the same order and the same augmentation parameters, so all give the same
pixels. To add one: a module with a class of this interface, and its line in `build`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.config.schema import AugmentConfig, DataConfig
from vgg_ddp.data import augment
from vgg_ddp.data.dataset import Split
from vgg_ddp.data.order import Slice
from vgg_ddp.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: uint8 [n, size, size, 3], on the device.
        labels: int64 [n], on the device.
        samples: indices into the split, int64 [n], on the host.
    """

    images: Tensor
    labels: Tensor
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def micro_batches(self, count: int) -> Iterator[Batch]:
        """`count` equal parts."""
        size = len(self) // count
        for start in range(0, size * count, size):
            part = slice(start, start + size)
            yield Batch(self.images[part], self.labels[part], self.samples[part])


@dataclass(frozen=True)
class Transform:
    """What is done to each image: resize, reflect-pad, crop, flip, rotate, in this order.

    Attributes:
        resize: the shorter side after resizing, pixels, or None.
        size: side of the crop, pixels.
        padding: reflect padding before the crop, pixels.
        flips, rotates: whether `draw` ever asks for it, so that a loader can leave the operation out.
        draw: the parameters of a slice's images.
    """

    resize: int | None
    size: int
    padding: int
    flips: bool
    rotates: bool
    draw: Callable[[Slice], augment.Parameters]


def training_transform(data: DataConfig, config: AugmentConfig, seed: int) -> Transform:
    return Transform(
        data.resize,
        data.image_size,
        config.crop_padding,
        config.flip,
        config.rotation > 0,
        partial(augment.draw, config, seed),
    )


def evaluation_transform(data: DataConfig) -> Transform:
    return Transform(data.resize, data.image_size, 0, False, False, augment.centred)


class Loader(Protocol):
    """Makes batches of a split. A loader is built once and serves any number of streams, one after another."""

    def stream(self, parts: Iterable[Slice]) -> Iterator[Batch]:
        """A batch for each slice, in order. A stream must be read to its end before the next begins."""
        ...


def choose(name: str) -> tuple[str, str]:
    """The loader that `name` ("auto" or one by name) means here, and why."""
    if name != "auto":
        return name, "asked for"
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return "dali", "NVIDIA DALI is installed"
    return "torch", "NVIDIA DALI is not installed"


def check_sizes(split: Split, transform: Transform) -> None:
    """Raises a `UserError` if an image of the split is too small for the transform."""
    shapes = augment.resized_shapes(split.shapes(np.arange(len(split))), transform.resize)
    if (least := int(shapes.min(initial=1 << 30))) >= transform.size and least <= transform.padding:
        raise UserError(
            f"augment.crop_padding ({transform.padding}) is more than an image of {least} pixels can reflect; "
            f"set it to {least - 1} or less"
        )
    small = np.flatnonzero(shapes.min(axis=1) < transform.size)
    if len(small):
        height, width = shapes[small[0]]
        raise UserError(
            f"{split.key(int(small[0]))} is {width} x {height} pixels, smaller than data.image_size ({transform.size}); "
            f"set data.resize={transform.size} to enlarge it"
        )


def build(
    name: str, split: Split, transform: Transform, config: DataConfig, device: torch.device, batch: int
) -> Loader:
    """The loader called `name` ("dali" or "torch") for slices of at most `batch` samples."""
    check_sizes(split, transform)
    if name == "dali":
        from vgg_ddp.loaders.dali import DaliLoader

        return DaliLoader(split, transform, config, device, batch)
    from vgg_ddp.loaders.torch_loader import TorchLoader

    return TorchLoader(split, transform, config, device)
