"""The torch loader, the reference for the others: a plain PyTorch DataLoader over libjpeg-turbo, Pillow and torchvision."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.augment.pixels import finish, window
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.order import Slice
from vgg_ddp.data.splits import RawSplit, Split
from vgg_ddp.distributed import parent
from vgg_ddp.errors import STOP_SIGNALS, UserError
from vgg_ddp.loaders import Batch, Loader

Item = tuple[Tensor, Tensor, Slice, str]


class TorchLoader(Loader):
    """See `vgg_ddp.loaders.Loader`."""

    def __init__(
        self, split: Split, geometry: Geometry, config: DataConfig, workers: int, device: torch.device
    ) -> None:
        self._device = device
        self._slices = _Slices()
        self._started = workers == 0
        self._loader = DataLoader(
            _Batches(split, geometry),
            batch_size=None,  # an item is a whole batch already
            sampler=self._slices,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # nothing to import again, nothing to copy
            prefetch_factor=config.prefetch if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=device.type == "cuda",
        )

    def stream(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """See `vgg_ddp.loaders.Loader.stream`."""
        self._slices.slices = slices
        for images, labels, piece, error in self._start():
            if error:
                raise UserError(error)
            yield Batch(
                images.to(self._device, non_blocking=True),
                labels.to(self._device, non_blocking=True),
                piece,
            )

    def _start(self) -> Iterator[Item]:
        """Begin a stream; the first one forks the workers, which block the signals that ask the rank to stop.

        Its workers must not collect garbage of their parent: the destructor of an object that owns threads, such as a DALI
        pipeline, would wait for threads that do not exist after a fork.
        """
        if self._started:
            return iter(self._loader)
        self._started = True
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # which the workers inherit
        gc.freeze()
        try:
            return iter(self._loader)
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)


class _Slices:
    """The DataLoader's sampler: the slices of the present stream."""

    slices: Iterable[Slice] = ()

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.slices)


class _Batches(Dataset[Item]):
    """Maps a slice to its augmented images, its labels, itself, and the message of a `UserError` (empty: none)."""

    def __init__(self, split: Split, geometry: Geometry) -> None:
        self._split, self._geometry = split, geometry

    def __getitem__(self, piece: Slice) -> Item:
        try:
            images = self._images(piece)
        except UserError as error:  # which the DataLoader would wrap in a traceback
            return torch.empty(0), torch.empty(0), piece, str(error)
        return images, torch.from_numpy(self._split.labels[piece.samples]), piece, ""

    def _images(self, piece: Slice) -> Tensor:
        geometry = self._geometry
        placement = geometry.place(piece, self._split.shapes(piece.samples))
        windows = self._windows(piece, placement.box)
        if geometry.random_operations:
            windows = self._random_augment(windows, piece)
        return finish(torch.from_numpy(windows), placement)

    def _windows(self, piece: Slice, box: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What lies in the boxes, scaled to squares, n x size x size x 3."""
        size, split = self._geometry.size, self._split
        if isinstance(split, RawSplit) and split.uniform_shape == (size, size) and not self._geometry.resamples:
            return split.pixels(piece.samples)
        windows = np.empty((len(piece.samples), size, size, 3), dtype=np.uint8)
        for i, (sample, edges) in enumerate(zip(piece.samples, box)):
            windows[i] = window(split.decode(int(sample)), edges, self._geometry)
        return windows

    def _random_augment(self, windows: NDArray[np.uint8], piece: Slice) -> NDArray[np.uint8]:
        """Cubuk et al., "RandAugment" (NeurIPS 2020), by torchvision; each image with a seed of its own."""
        from torchvision.transforms.v2 import RandAugment

        change = RandAugment(self._geometry.random_operations, self._geometry.random_magnitude)
        changed = np.empty_like(windows)
        with torch.random.fork_rng(devices=[]):
            for i, seed in enumerate(self._geometry.random_seeds(piece)):
                torch.manual_seed(int(seed))
                changed[i] = change(torch.from_numpy(windows[i]).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return changed


def _start_worker(rank: int, worker: int) -> None:
    parent.end_with(rank)  # at once, for it holds the lock of the run's folder too
    threading.Thread(target=_hear, args=(rank,), daemon=True).start()


def _hear(rank: int) -> None:
    """End at a SIGTERM from the rank, as DataLoader sends at its end; one from any other process is meant for the rank."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != rank:
        pass
    os._exit(128 + signal.SIGTERM)
