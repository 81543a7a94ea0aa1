"""Layers without weights of which torch has no fitting ones: the global max pool, and the scale of the logits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class GlobalMaxPool2d(nn.Module):
    """`nn.AdaptiveMaxPool2d(1)` by the plain pool, which has a deterministic backward and channels-last kernels on GPUs."""

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, channels, height, width] to [n, channels, 1, 1]."""
        return functional.max_pool2d(images, images.shape[2:])


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        """Any shape, which stays."""
        return values * self.factor
