"""The reference: a plain PyTorch DataLoader over Pillow and torchvision."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data import augment
from vgg_ddp.data.dataset import RawSplit, Split
from vgg_ddp.data.order import Slice
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch, Transform


class TorchLoader:
    """See `vgg_ddp.loaders.Loader`."""

    def __init__(self, split: Split, transform: Transform, config: DataConfig, device: torch.device) -> None:
        self._device = device
        self._parts = _Parts()
        self._started = config.workers == 0
        self._loader = DataLoader(
            _Batches(split, transform),
            batch_size=None,  # an item is a whole batch already
            sampler=self._parts,
            num_workers=config.workers,
            multiprocessing_context="fork" if config.workers else None,  # nothing to import again, nothing to copy
            prefetch_factor=config.prefetch if config.workers else None,
            persistent_workers=config.workers > 0,
            worker_init_fn=_start_worker,
            pin_memory=device.type == "cuda",
        )

    def stream(self, parts: Iterable[Slice]) -> Iterator[Batch]:
        self._parts.parts = parts
        for images, labels, samples, error in self._start():
            if error:
                raise UserError(error)
            yield Batch(
                images.to(self._device, non_blocking=True),
                labels.to(self._device, non_blocking=True),
                samples.numpy(),
            )

    def _start(self) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
        """Begin a stream; the first one forks the workers.

        A worker must never collect garbage of its parent's: to destroy the copy of something that owns threads, a DALI
        pipeline for one, waits for threads that a fork leaves behind.
        """
        if self._started:
            return iter(self._loader)
        self._started = True
        gc.freeze()
        try:
            return iter(self._loader)
        finally:
            gc.unfreeze()


class _Parts:
    """What the DataLoader asks its workers for: the slices of the stream at hand."""

    parts: Iterable[Slice] = ()

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.parts)


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor, str]]):
    """From a slice to its augmented images, labels, sample indices, and what was wrong with a sample."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self._split, self._transform = split, transform

    def __getitem__(self, part: Slice) -> tuple[Tensor, Tensor, Tensor, str]:
        empty = torch.empty(0)
        try:
            images = self._images(part)
        except UserError as error:  # the DataLoader would wrap it in a traceback of its own
            return empty, empty, empty, str(error)
        labels = self._split.labels[part.samples]
        return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(part.samples), ""

    def _images(self, part: Slice) -> NDArray[np.uint8]:
        transform = self._transform
        parameters = transform.draw(part)
        shapes = augment.resized_shapes(self._split.shapes(part.samples), transform.resize)
        offsets = augment.crop_offsets(parameters, shapes, transform.size, transform.padding)
        flip, size, padding = parameters.flip, transform.size, transform.padding
        if (shapes == shapes[0]).all():
            images = augment.crop(self._resized(part.samples, shapes), offsets, flip, size, padding)
        else:
            images = np.empty((len(part.samples), size, size, 3), dtype=np.uint8)
            for i in range(len(part.samples)):
                one = slice(i, i + 1)
                image = self._resized(part.samples[one], shapes[one])
                images[one] = augment.crop(image, offsets[one], flip[one], size, padding)
        if transform.rotates:
            images = np.stack([augment.rotate(image, float(a)) for image, a in zip(images, parameters.angle)])
        return images

    def _resized(self, samples: NDArray[np.int64], shapes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decoded images of one size, n x height x width x 3."""
        if isinstance(self._split, RawSplit) and self._transform.resize is None:
            return self._split.images[samples]
        images = (self._split.decode(int(sample)) for sample in samples)
        if self._transform.resize is None:
            return np.stack(list(images))
        height, width = (int(side) for side in shapes[0])
        return np.stack([augment.resize(image, height, width) for image in images])


def _start_worker(worker: int) -> None:
    """A worker ends with its rank, which alone decides what a signal means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
