"""Averaged weights: what is evaluated in place of the last step's."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """The exponential moving average of a network's parameters and buffers; with a decay of 0, the network itself.

    The decay is warmed up, min(decay, (1 + t) / (10 + t)), so that short runs are not held back by their first steps
    (TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network
        self._pairs = self._floating(network) if decay else []

    def _floating(self, network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        ours, theirs = self.network.state_dict(), network.state_dict()
        return [(ours[name], theirs[name]) for name in ours if ours[name].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's values after global step `step` (from 0)."""
        if self._pairs:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages, values = zip(*self._pairs)
            torch._foreach_lerp_(list(averages), list(values), 1 - decay)
