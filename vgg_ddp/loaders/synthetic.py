"""Batches of noise that lie on the device already: for measuring everything but the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.data.order import Slice
from vgg_ddp.data.splits import Split
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Batch, Loader


class SyntheticLoader(Loader):
    """See `vgg_ddp.loaders.Loader`. The labels are the samples' own, the pixels noise: nothing can be learned from them."""

    def __init__(self, split: Split, geometry: Geometry, world: World, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, geometry.size, geometry.size, 3)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(world.device)
        self._labels = torch.from_numpy(split.labels).to(world.device)

    def stream(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """See `vgg_ddp.loaders.Loader.stream`."""
        for piece in slices:
            samples = torch.from_numpy(piece.samples).to(self._labels.device, non_blocking=True)
            yield Batch(self._images[: len(piece.samples)], self._labels[samples], piece)
