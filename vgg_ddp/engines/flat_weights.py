"""Convolution weights for a library that lays parameters end to end and knows of contiguous ones alone.

A weight [out, in, row, column] in channels-last memory is, as [out, row, column, in], contiguous. Kept so, it can be laid into
flat memory and the kernels still find it, and leave its gradient, in the layout that they are quickest with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vgg_ddp.model.convolution import Convolution


class FlatConvolution(Convolution):
    """A `Convolution` whose parameter is [out, row, column, in]; its `weight` is seen as ever."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return _seen(self._parameters["weight"])  # type: ignore[arg-type]


def _seen(kept: Tensor) -> Tensor:
    return kept.permute(0, 3, 1, 2)


class FlatWeights:
    """Which parameters of a network are kept the other way round, and the way from one to the other."""

    def __init__(self, network: nn.Module, wanted: bool) -> None:
        """Change the convolutions of `network` in place, if `wanted`; parameters keep their names."""
        self._names: set[str] = set()
        for name, module in network.named_modules():
            if wanted and isinstance(module, Convolution):
                self._names.add(f"{name}.weight")
                weight = module.weight.detach().permute(0, 2, 3, 1)
                module.weight = nn.Parameter(weight.contiguous(memory_format=torch.contiguous_format))
                module.__class__ = FlatConvolution

    def seen(self, name: str, kept: Tensor) -> Tensor:
        """The tensor of parameter `name` (itself, or state of the optimizer for it) as checkpoints have it: a view."""
        return _seen(kept) if name in self._names and kept.ndim == 4 else kept

    def kept(self, name: str, seen: Tensor) -> Tensor:
        """The reverse of `seen`."""
        return seen.permute(0, 2, 3, 1) if name in self._names and seen.ndim == 4 else seen
