"""Channels-last convolution weights for DeepSpeed, which copies parameters into flat buffers and only takes contiguous ones.

A channels-last weight [out, in, row, column] is contiguous when seen as [out, row, column, in]. Kept that way, it can
be copied into flat memory, and kernels read it, and write its gradient, in the layout in which they are fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vgg_ddp.model.convolution import Convolution, CpuConvolution


class FlatConvolution(Convolution):
    """A `Convolution` whose parameter is [out, row, column, in]."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as [out, in, row, column]: a view."""
        return _seen(self._parameters["weight"])  # type: ignore[arg-type]


class FlatCpuConvolution(FlatConvolution, CpuConvolution):
    """The same of a `CpuConvolution`."""


FLAT = {Convolution: FlatConvolution, CpuConvolution: FlatCpuConvolution}


def _seen(kept: Tensor) -> Tensor:
    return kept.permute(0, 3, 1, 2)


class FlatWeights:
    """The parameters of a network that are kept as [out, row, column, in], and the conversion both ways."""

    def __init__(self, network: nn.Module, wanted: bool) -> None:
        """Change the convolutions of `network` in place, if `wanted`; parameters keep their names."""
        self._names: set[str] = set()
        for name, module in network.named_modules():
            if wanted and isinstance(module, Convolution):
                self._names.add(f"{name}.weight")
                weight = module.weight.detach().permute(0, 2, 3, 1).contiguous(memory_format=torch.contiguous_format)
                module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
                module.__class__ = FLAT[type(module)]

    def seen(self, name: str, kept: Tensor) -> Tensor:
        """The tensor of parameter `name` (itself, or state of the optimizer for it) as checkpoints have it: a view."""
        return _seen(kept) if name in self._names and kept.ndim == 4 else kept

    def kept(self, name: str, seen: Tensor) -> Tensor:
        """The reverse of `seen`."""
        return seen.permute(0, 2, 3, 1) if name in self._names and seen.ndim == 4 else seen
