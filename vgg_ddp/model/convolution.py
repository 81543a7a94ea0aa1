"""Padded convolutions that skip the products with padding.

The last stages of a VGG at 32 pixels see images of 4x4 pixels and fewer, where many of the nine taps multiply zeros: 44 of 144
products on 4x4, 20 of 36 on 2x2, 8 of 9 on 1x1. Libraries compute them all the same. Without them, matrix products are left;
they give the same sums up to the order of their terms.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A convolution with stride 1 that keeps the image's size (odd kernel, padded by half of it).

    Args:
        adds_bias: False where a batch norm follows, which would subtract it again: the bias is then a buffer of zeros, so that
            state dicts keep their names.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, adds_bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.adds_bias = adds_bias
        if not adds_bias:
            del self.bias
            self.register_buffer("bias", torch.zeros(out_channels))

    def __prepare_scriptable__(self) -> Convolution:  # which torch.jit.script, deprecated, asks of a module
        raise NotImplementedError("torch.jit.script cannot compile a VGG: use torch.export, or vgg-ddp export")

    @property
    def added(self) -> Tensor | None:
        """The bias, if it is added."""
        return self.bias if self.adds_bias else None

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, in, height, width] to [n, out, height, width]."""
        return _convolved(images, self.weight, self.added)


class CpuConvolution(Convolution):
    """A `Convolution` that takes matrix products on 2x2, 3x3 and 4x4 pixels, where they were measured to be faster on a CPU.

    The training sizes can differ between epochs, so each forward pass chooses by the size of its images.
    """

    def forward(self, images: Tensor) -> Tensor:
        """As `Convolution.forward`."""
        return _convolved_on_cpu(images, self.weight, self.added)


@torch.no_grad()
def move_biases_into_running_means(features: nn.Module, keys: object) -> None:
    """Move loaded biases that no convolution adds into the batch norms that follow: (x + b) - mean = x - (mean - b)."""
    for layer, following in itertools.pairwise(features.children()):
        if isinstance(layer, Convolution) and not layer.adds_bias and isinstance(following, nn.BatchNorm2d):
            assert following.running_mean is not None and layer.bias is not None
            following.running_mean -= layer.bias
            layer.bias.zero_()


@fx.wrap  # the choices by size are one node of a graph
def _convolved(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve; in an image of one pixel, only the middle tap counts."""
    if weight.shape[2:] == (3, 3) and images.shape[2:] == (1, 1):
        return functional.conv2d(images, weight[:, :, 1:2, 1:2], bias)
    return functional.conv2d(images, weight, bias, padding=weight.shape[2] // 2)


@fx.wrap
def _convolved_on_cpu(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.shape[2:] == (3, 3):
        if images.shape[2:] == (2, 2):  # twice as fast
            return _on_2x2(images, weight, bias)
        if images.shape[2:] != (1, 1) and _is_small_and_wide(images, weight):
            return _with_products_of_taps(images, weight, bias)
    return _convolved(images, weight, bias)


def _with_products_of_taps(*tensors: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    return _ProductsOfTaps.apply(*tensors)


def _on_2x2(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each output pixel sees all four input pixels, through the taps that fall on them."""
    taps = weight.permute(0, 2, 3, 1)  # out, row, column, in: contiguous in channels-last memory
    matrix = torch.cat([taps[:, 1 - y : 3 - y, 1 - x : 3 - x].flatten(1) for y in (0, 1) for x in (0, 1)])
    bias = None if bias is None else bias.repeat(4)
    pixels = functional.linear(images.permute(0, 2, 3, 1).flatten(1), matrix, bias)
    return pixels.unflatten(1, (2, 2, len(weight))).permute(0, 3, 1, 2)


def _is_small_and_wide(images: Tensor, weight: Tensor) -> bool:
    """Whether a matrix product per tap beats oneDNN's weight gradient: measured, 1.5 times on 4x4, 3 times on 3x3."""
    return (
        max(images.shape[2:]) <= 4
        and min(weight.shape[:2]) >= 256
        and images.is_contiguous(memory_format=torch.channels_last)
    )


class _ProductsOfTaps(torch.autograd.Function):
    """A 3x3 convolution padded by 1; its weight gradient is one matrix product per tap, over the pixels it meets."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.has_bias = bias is not None
        return functional.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, Tensor | None]:
        images, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        # Stride, padding, dilation, transposed, output padding, groups.
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        wanted = [ctx.needs_input_grad[0], False, False]
        to_images, _, _ = torch.ops.aten.convolution_backward(gradient, images, weight, None, *geometry, wanted)
        to_bias = gradient.sum((0, 2, 3)) if ctx.has_bias else None
        return to_images, _weight_gradient(gradient, images), to_bias


def _weight_gradient(gradient: Tensor, images: Tensor) -> Tensor:
    """Out x in x 3 x 3, from the output's gradient and the input, both channels-last."""
    outputs, inputs = gradient.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
    height, width = inputs.shape[1:3]
    taps = gradient.new_empty(outputs.shape[3], 3, 3, inputs.shape[3])
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            ours = outputs[:, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
            theirs = inputs[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
            taps[:, down + 1, right + 1] = ours.flatten(0, 2).t() @ theirs.flatten(0, 2)
    return taps.permute(0, 3, 1, 2)
