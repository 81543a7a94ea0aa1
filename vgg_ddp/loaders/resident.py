"""The resident loader: every image decoded once, kept as uint8 on the device, and augmented there in whole batches.

A run that uses the same small images many times need not decode them every epoch. For training on a CPU, raw pixels
stay mapped from their file. With `residency: sharded`, each rank keeps the samples whose index modulo the world
size is its rank, and the ranks exchange what each batch needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.augment.pixels import crop, finish, on_device, resample_batch, rotate, take
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data import nvidia_dali
from vgg_ddp.data.order import Slice
from vgg_ddp.data.settling import not_of_one_size
from vgg_ddp.data.splits import EncodedSplit, RawSplit, Split
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Batch, Loader

AT_A_TIME = 2**20  # bytes of pixels that a thread decodes, or one image
COPIED_AT_A_TIME = 2**26  # bytes of raw pixels that a rank holds on their way to its device, or one image


class ResidentLoader(Loader):
    """See `vgg_ddp.loaders.Loader`. Crops and flips can be left to `finish`, which computes them on the device alone.

    Raises:
        UserError: the images differ in size.
    """

    def __init__(self, split: Split, geometry: Geometry, config: DataConfig, world: World) -> None:
        if split.uniform_shape is None:
            raise not_of_one_size(split)
        self._split, self._geometry, self._world = split, geometry, world
        self._sharded = config.residency == "sharded" and world.size > 1
        self._pixels = resident_pixels(split, config, world, self._sharded)
        self._labels = torch.from_numpy(split.labels).to(world.device)
        self._in_step = False
        coins = geometry.coins(len(split))
        self._coins = None if coins is None else torch.from_numpy(coins).to(world.device)

    def leave_to_step(self) -> None:
        """See `vgg_ddp.loaders.Loader.leave_to_step`."""
        self._in_step = self._geometry.is_crop and not self._sharded

    def stream(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """See `vgg_ddp.loaders.Loader.stream`."""
        for piece in self._until_all_are_done(iter(slices)) if self._sharded else slices:
            if piece is None:
                self._exchange(np.empty(0, dtype=np.int64))
                continue
            if self._in_step:
                yield Batch(self._pixels[:0], self._labels[:0], piece)
                continue
            samples = on_device(self._labels, piece.samples)
            yield Batch(self._images(piece), self._labels.index_select(0, samples), piece)

    def finish(self, batch: Batch) -> Batch:
        """See `vgg_ddp.loaders.Loader.finish`."""
        if not self._in_step:
            return batch
        piece = batch.slice
        assert isinstance(piece, DeviceSlice)
        images = crop(self._pixels, piece, self._geometry, self._coins)
        return Batch(images, self._labels.index_select(0, piece.samples), piece)

    def _images(self, piece: Slice) -> Tensor:
        geometry = self._geometry
        placement = geometry.place(piece, self._split.shapes(piece.samples))
        pixels, which = self._pixels, piece.samples
        if self._sharded:
            pixels, which = self._exchange(which), np.arange(len(which))
        if geometry.resamples:
            return finish(resample_batch(pixels, which, placement.box, geometry.size), placement)
        rows, columns = placement.rows, placement.columns
        steps = np.arange(geometry.size)
        top, left = (placement.box[:, axis : axis + 1].astype(np.int64) for axis in (0, 1))
        if rows is None and placement.flip is None and self._split.uniform_shape == (geometry.size, geometry.size):
            images = pixels.index_select(0, torch.from_numpy(which).to(pixels.device, non_blocking=True))
        else:
            rows = top + (steps if rows is None else rows)
            columns = left + (steps if columns is None else columns)
            images = take(pixels, which, replace(placement, rows=rows, columns=columns))
        return images if placement.angle is None else rotate(images, placement.angle)

    def _until_all_are_done(self, slices: Iterator[Slice]) -> Iterator[Slice | None]:
        """This rank's slices, then None while other ranks still have some: it must answer their requests to the end."""
        while True:
            piece = next(slices, None)
            if not self._world.sum(torch.tensor([piece is not None], dtype=torch.int64)).item():
                return
            yield piece

    def _exchange(self, samples: NDArray[np.int64]) -> Tensor:
        """The pixels of samples that lie on other ranks, each rank asking and answering; uint8 [n, height, width, 3]."""
        size = self._world.size
        order = np.argsort(samples % size, kind="stable")
        asked = np.bincount(samples % size, minlength=size)
        asking = torch.empty(size, dtype=torch.int64)
        dist.all_to_all_single(asking, torch.from_numpy(asked))
        wanted = torch.empty(int(asking.sum()), dtype=torch.int64)
        dist.all_to_all_single(wanted, torch.from_numpy(samples[order]), asking.tolist(), asked.tolist())
        answer = self._pixels.index_select(0, (wanted // size).to(self._pixels.device))
        received = answer.new_empty((len(samples), *answer.shape[1:]))
        dist.all_to_all_single(received, answer, asked.tolist(), asking.tolist())
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(received.device)
        return received.index_select(0, back)


_kept: WeakKeyDictionary[Split, dict[tuple[torch.device, bool], Tensor]] = WeakKeyDictionary()


def resident_pixels(split: Split, config: DataConfig, world: World, sharded: bool) -> Tensor:
    """The decoded pixels of a split on the device, or this rank's shard of them; made once however many loaders ask.

    Returns:
        uint8 [count, height, width, 3].
    """
    kept, place = _kept.setdefault(split, {}), (world.device, sharded)
    if place not in kept:
        samples = np.arange(len(split))
        samples = samples[samples % world.size == world.rank] if sharded else samples
        kept[place] = _decoded(split, samples, config, world)
    return kept[place]


def _decoded(split: Split, samples: NDArray[np.int64], config: DataConfig, world: World) -> Tensor:
    if isinstance(split, RawSplit):
        split.compare(samples)
        pixels = torch.from_numpy(split.images)
        if len(samples) == len(split) and world.device.type == "cpu":
            return pixels
        found = pixels.new_empty((len(samples), *pixels.shape[1:]), device=world.device)
        many = max(1, COPIED_AT_A_TIME // math.prod(pixels.shape[1:]))
        for start in range(0, len(samples), many):
            found[start : start + many] = pixels[torch.from_numpy(samples[start : start + many])]
        return found
    pixels = torch.empty((len(samples), *split.uniform_shape, 3), dtype=torch.uint8, device=world.device)  # type: ignore[misc]
    decode = _by_pillow if nvidia_dali.problem(world.device.type == "cuda") else _by_dali
    for start, images in decode(split, samples, world):
        pixels[start : start + len(images)] = images
    return pixels


def _by_dali(split: EncodedSplit, samples: NDArray[np.int64], world: World) -> Iterator[tuple[int, Tensor]]:
    """Decoded images and the place of the first in `samples`, batch after batch."""
    from vgg_ddp.loaders.dali import decode

    return decode(split, samples, world.device, world.share_of_cores())


def _by_pillow(split: EncodedSplit, samples: NDArray[np.int64], world: World) -> Iterator[tuple[int, Tensor]]:
    """As `_by_dali`. A thread takes many small images at a time: to hand one over takes as long as to decode it."""
    assert split.uniform_shape is not None
    many = max(1, AT_A_TIME // (3 * math.prod(split.uniform_shape)))
    starts = range(0, len(samples), many)

    def decoded(start: int) -> Tensor:
        return torch.from_numpy(np.stack([split.decode(sample) for sample in samples[start : start + many].tolist()]))

    with ThreadPoolExecutor(world.share_of_cores()) as pool:
        yield from zip(starts, pool.map(decoded, starts))
