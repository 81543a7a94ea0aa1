"""The order of the samples, a pure function of (seed, epoch, step).

Nothing here knows of ranks, workers, loaders or restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.randomness import permutation, random_words, uniform


def stratified_split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on and indices held out, both sorted; `share` of each class is held out, rounded to the nearest."""
    held_out = np.zeros(len(labels), dtype=bool)
    shuffled = permutation(seed, 2**31 - 1, len(labels))  # an epoch number that no training reaches
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        held_out[members[: round(share * len(members))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


@dataclass(frozen=True)
class Slice:
    """A run of consecutive positions of an epoch, and the samples at them.

    Attributes:
        epoch: the epoch.
        start: the position of the first sample in the epoch.
        samples: indices into the split, int64[n].
    """

    epoch: int
    start: int
    samples: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """The position after the last sample's."""
        return self.start + len(self.samples)

    def cut(self, first: int, count: int) -> Slice:
        """`count` of its positions, beginning with position `first` of the slice."""
        return Slice(self.epoch, self.start + first, self.samples[first : first + count])

    def random_words(self, seed: int, purpose: str) -> NDArray[np.uint64]:
        """Four random words for each of its positions, uint64[n, 4]; see `vgg_ddp.randomness.random_words`."""
        return random_words(seed, self.epoch, purpose, self.start, self.stop)

    def uniform(self, seed: int, purpose: str) -> NDArray[np.float64]:
        """Four numbers in [0, 1) for each of its positions, float64[n, 4]."""
        return uniform(self.random_words(seed, purpose))


@dataclass(frozen=True)
class Order:
    """Which samples of a training set make up which global batch.

    Attributes:
        seed: seed of every random number.
        samples: the indices that are trained on, int64[n].
        batch: the global batch size. The last, incomplete batch of an epoch is dropped.
    """

    seed: int
    samples: NDArray[np.int64]
    batch: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return len(self.samples) // self.batch

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order, int64[n]."""
        return self.samples[permutation(self.seed, epoch, len(self.samples))]

    def slices(self, epoch: int, rank: int = 0, world_size: int = 1, first_step: int = 0) -> Iterator[Slice]:
        """This rank's local batch of each global batch of the epoch, from step `first_step` of the epoch on."""
        order = self.epoch(epoch)
        local_batch = self.batch // world_size
        for step in range(first_step, self.steps_per_epoch):
            start = step * self.batch + rank * local_batch
            yield Slice(epoch, start, order[start : start + local_batch])


def evaluation_slices(samples: NDArray[np.int64], batch: int, rank: int = 0, world_size: int = 1) -> Iterator[Slice]:
    """Consecutive batches of `samples`, dealt out to the ranks in turn.

    The batches do not depend on the world size, so each image meets the same neighbours in the same forward pass and its
    logits have the same bits at any world size. The last batch may be short; every image appears exactly once.
    """
    for start in range(rank * batch, len(samples), batch * world_size):
        yield Slice(0, start, samples[start : start + batch])
