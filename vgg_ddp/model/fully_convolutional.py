"""A VGG for images larger than it was trained on: its fully connected layers as convolutions (section 3.2 of the paper)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.model.layers import GlobalMaxPool2d
from vgg_ddp.model.network import VGG


class FullyConvolutional(nn.Module):
    """Images, float [n, 3, height, width], to a map of class scores, float [n, num_classes, rows, columns].

    In the paper's head, the first layer becomes a convolution of 7x7 (for images of 224 pixels, a 32nd of that),
    the others become 1x1; cells are 32 pixels apart. In the compact head, the global max pool becomes the maximum over
    each window of the size that it covers in training; cells are 16 pixels apart (for vgg_tiny, with one pool less, 16
    and 8). An image of the training size has one cell, with the logits of the network itself.

    The layers are the network's own, with their weights viewed as kernels: state dicts of the two are interchangeable.

    Args:
        network: any VGG.
        image_size: side of the images that it was trained on, pixels. Height and width must not be less.
    """

    def __init__(self, network: VGG, image_size: int) -> None:
        super().__init__()
        self.features, self.classifier = network.features, network.classifier
        self._window = image_size // 2**network.pools_before_last  # side of what the global pool sees of an image

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        maps = images
        for layer in self.features:
            pool = isinstance(layer, GlobalMaxPool2d)
            maps = functional.max_pool2d(maps, self._window, stride=1) if pool else layer(maps)
        for layer in self.classifier:
            maps = _convolved(layer, maps) if isinstance(layer, nn.Linear) else layer(maps)
        return maps


def _convolved(layer: nn.Linear, maps: Tensor) -> Tensor:
    channels = maps.shape[1]
    side = math.isqrt(layer.in_features // channels)
    return functional.conv2d(maps, layer.weight.view(-1, channels, side, side), layer.bias)
