"""Loaders: from slices of the order to batches of pixels on the device.

One interface, one file each. All are fed by the same order and the same placements (`vgg_ddp.augment`), so all give the same
pixels. To add one: a module with a class of this interface, and its line in `build`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.augment.pixels import on_device
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data import nvidia_dali
from vgg_ddp.data.order import Slice
from vgg_ddp.data.splits import Split
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.loaders.choice import check_sizes, shortage_for_workers, with_cores


@dataclass(frozen=True)
class Batch:
    """One rank's local batch, or a micro-batch of it.

    Attributes:
        images: uint8 [n, size, size, 3], on the device.
        labels: int64 [n], on the device.
        slice: which samples they are, and where they stand in the order; on the device in a recorded step.
    """

    images: Tensor
    labels: Tensor
    slice: Slice | DeviceSlice

    def __len__(self) -> int:
        return len(self.slice.samples)

    @property
    def samples(self) -> NDArray[np.int64]:
        """Indices into the split, int64 [n], on the host."""
        assert isinstance(self.slice, Slice)
        return self.slice.samples

    def micro_batches(self, count: int) -> Iterator[Batch]:
        """`count` batches of equal size, in order."""
        size = len(self) // count
        for first in range(0, size * count, size):
            rows = slice(first, first + size)
            yield Batch(self.images[rows], self.labels[rows], self.slice.cut(first, size))

    def at(self, rows: Tensor) -> Batch:
        """The images at these rows, int64 [m] on the device, each with the place in the order that it has."""
        piece = self.slice
        if isinstance(piece, Slice):
            epoch = torch.full((), piece.epoch, device=rows.device)
            piece = DeviceSlice(epoch, rows + piece.start, on_device(rows, piece.samples)[rows])
        else:
            piece = DeviceSlice(piece.epoch, piece.position[rows], piece.samples[rows])
        return Batch(self.images[rows], self.labels[rows], piece)


class Loader(Protocol):
    """Makes batches of a split. A loader is built once and serves any number of streams, one after another."""

    def stream(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """A batch for each slice, in order. A stream must be read to its end before the next begins."""
        ...

    def leave_to_step(self) -> None:
        """From now on, leave work that needs nothing from the host to `finish`."""
        return

    def finish(self, batch: Batch) -> Batch:
        """Complete a batch of `stream` on its device, as the first part of the step."""
        return batch


def build(name: str, split: Split, geometry: Geometry, config: DataConfig, world: World, batch: int) -> Loader:
    """The loader called `name` for slices of at most `batch` samples.

    Raises:
        UserError: the loader cannot do what the geometry asks for, or an image is too small for it.
    """
    check_sizes(split, geometry)
    config = with_cores(config, world)
    if geometry.random_operations and name != "torch":
        raise UserError(f"augment.randaugment works image by image, which loader={name} does not; set loader=torch")
    if name == "resident":
        from vgg_ddp.loaders.resident import ResidentLoader

        return ResidentLoader(split, geometry, config, world)
    if name == "synthetic":
        from vgg_ddp.loaders.synthetic import SyntheticLoader

        return SyntheticLoader(split, geometry, world, batch)
    if name == "dali":
        nvidia_dali.require(world.device.type == "cuda")
        from vgg_ddp.loaders.dali import DaliLoader

        return DaliLoader(split, geometry, config, world.device, batch)
    from vgg_ddp.loaders.torch_loader import TorchLoader

    assert config.workers != "auto"
    workers = 0 if shortage_for_workers(config, world, batch) else config.workers
    return TorchLoader(split, geometry, config, workers, world.device)
