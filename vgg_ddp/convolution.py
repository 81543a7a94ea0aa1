"""A padded 3x3 convolution that leaves out what only meets padding.

The last stages of a VGG at 32 pixels see images of 2x2 and 1x1 pixels, where most of the nine taps multiply zeros: 20 of 36
products on 2x2, 8 of 9 on 1x1. Libraries compute them all the same. What is left is a matrix product; it gives the same
sums up to the order of their terms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A convolution with stride 1 that keeps the image's size (odd kernel, padded by half of it)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        if self.kernel_size == (3, 3):
            if images.shape[2:] == (1, 1):
                return functional.conv2d(images, self.weight[:, :, 1:2, 1:2], self.bias)
            if images.shape[2:] == (2, 2) and images.device.type == "cpu":  # measured there: twice as fast
                return self._on_2x2(images)
        return super().forward(images)

    def _on_2x2(self, images: Tensor) -> Tensor:
        """Each output pixel sees all four input pixels, through the taps that fall on them."""
        taps = self.weight.permute(0, 2, 3, 1)  # out, row, column, in: contiguous in channels-last memory
        matrix = torch.cat([taps[:, 1 - y : 3 - y, 1 - x : 3 - x].flatten(1) for y in (0, 1) for x in (0, 1)])
        bias = None if self.bias is None else self.bias.repeat(4)
        pixels = functional.linear(images.permute(0, 2, 3, 1).flatten(1), matrix, bias)
        return pixels.unflatten(1, (2, 2, self.out_channels)).permute(0, 3, 1, 2)
