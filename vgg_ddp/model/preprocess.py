"""From stored pixels to what the network takes; part of the network when it is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """uint8 [n, height, width, 3] to normalised float [n, 3, height, width].

    Args:
        mean, std: what each channel is normalised with, in units of 0 to 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to normalised float [n, 3, height, width]."""
        return self.normalise(images.permute(0, 3, 1, 2).float())

    def normalise(self, pixels: Tensor, side: int | None = None) -> Tensor:
        """Normalise float pixels [n, 3, height, width] from 0 to 255; scale to `side` pixels if given (bilinear, antialiased).

        Training on smaller images first is faster (progressive resizing; Tan & Le, "EfficientNetV2", ICML 2021, section 4).
        """
        pixels = (pixels - self.mean) / self.std
        if side is not None and side != pixels.shape[-1]:
            pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        return pixels.contiguous(memory_format=self._layout)
