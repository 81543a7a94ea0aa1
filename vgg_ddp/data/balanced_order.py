"""An order in which every class comes equally often, however few its images; as pure a function as the plain one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.data.order import Order
from vgg_ddp.randomness import permutation


@dataclass(frozen=True)
class BalancedOrder(Order):
    """An `Order` whose epochs draw as many images as there are, in whole batches, from every class the same number.

    Draw g of a training, counted over its epochs, is of class g modulo the number of classes, so that counts differ by one at
    most, in any run of epochs too. A class deals out its images in one permutation after the other: none comes again before all
    of its class have come. Each epoch then shuffles what it drew.

    Attributes:
        labels: the class of each of `samples`, int64[n].
    """

    labels: NDArray[np.int64]

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order, int64[steps_per_epoch * batch]."""
        count = self.steps_per_epoch * self.batch
        draws = np.arange(epoch * count, (epoch + 1) * count)
        classes = np.unique(self.labels)
        drawn = np.empty(count, dtype=np.int64)
        for k, label in enumerate(classes):
            here = draws % len(classes) == k
            drawn[here] = self._dealt(int(label), draws[here] // len(classes))
        return drawn[permutation(self.seed, epoch, count)]

    def _dealt(self, label: int, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of a class at its `turns`, which count from 0 over all epochs and rise by one; int64[n]."""
        members = self.samples[self.labels == label]
        rounds = turns // len(members)
        first, last = (int(rounds[0]), int(rounds[-1])) if len(rounds) else (0, -1)
        dealt = [permutation(self.seed, k, len(members), f"order of class {label}") for k in range(first, last + 1)]
        return members[np.concatenate(dealt)[turns - first * len(members)]] if dealt else members[:0]
