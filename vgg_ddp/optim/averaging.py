"""Averaged weights (exponential moving average), which are evaluated in place of the last step's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from vgg_ddp.errors import UserError


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
        averages, values = self._matched(self._average)
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + step) / (10 + step)))

    def _matched(self, average: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The floating-point tensors of the average, and those of the network as it is."""
        network = self._source()
        if network is not self._averaged:
            ours, theirs = average.state_dict(), network.state_dict()
            self._pairs = [(ours[name], theirs[name]) for name in ours if ours[name].is_floating_point()]
            self._averaged = network
        averages, values = zip(*self._pairs)
        return list(averages), list(values)


class Lookahead(Average):
    """Every few steps the average is moved towards the network, which continues from it (Zhang et al., NeurIPS 2019).

    The decay rises with the cube of the share of training that is done, as in airbench94 (Jordan 2024, arXiv 2404.00498,
    section 3.4), which ends at 0.95^5 with an average every five steps.
    """

    def __init__(self, source: Callable[[], nn.Module], decay: float, every: int, total_steps: int) -> None:
        super().__init__(source, decay)
        self._every, self._total_steps = every, total_steps

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After every `every` steps, update the average and give it to the network."""
        assert self._average is not None
        if (step + 1) % self._every == 0:
            averages, values = self._matched(self._average)
            torch._foreach_lerp_(averages, values, 1 - self.decay * ((step + 1) / self._total_steps) ** 3)
            torch._foreach_copy_(values, averages)


def build(source: Callable[[], nn.Module], decay: float, lookahead: int, total_steps: int) -> Average:
    """The averaged weights of a training, whose network continues from them every `lookahead` steps; 0: never.

    Raises:
        UserError: `total_steps` are too few for that to happen twice: the average would consist mostly of initial weights.
    """
    if 2 * lookahead > total_steps:
        raise UserError(
            f"lookahead={lookahead} is more than half of the training, {total_steps} steps; set a smaller one, or 0"
        )
    return Lookahead(source, decay, lookahead, total_steps) if lookahead else Average(source, decay)
