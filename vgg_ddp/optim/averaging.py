"""Averaged weights (exponential moving average), which are evaluated in place of the last step's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


class Average:
    """The exponential moving average of a network's parameters and buffers; with a decay of 0, the network itself.

    The decay is warmed up, min(decay, (1 + t) / (10 + t)), so that short runs are not held back by their first steps
    (TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, source: Callable[[], nn.Module], decay: float) -> None:
        """`source` gives the current network. It may be a collective call: here, in `update` and for `network`."""
        self.decay = decay
        self._source = source
        self._average = copy.deepcopy(source()).requires_grad_(False) if decay else None
        self._averaged: nn.Module | None = None  # the network that `_pairs` belong to
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def network(self) -> nn.Module:
        """The averaged network, always the same one; with a decay of 0, the network as it is."""
        return self._source() if self._average is None else self._average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after global step `step` (from 0)."""
        if self._average is None:
            return
        network = self._source()
        if network is not self._averaged:
            ours, theirs = self._average.state_dict(), network.state_dict()
            self._pairs = [(ours[name], theirs[name]) for name in ours if ours[name].is_floating_point()]
            self._averaged = network
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = zip(*self._pairs)
        torch._foreach_lerp_(list(averages), list(values), 1 - decay)
