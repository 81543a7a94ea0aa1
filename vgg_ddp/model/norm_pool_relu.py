"""Batch norm, 2x2 max pool and ReLU as one layer of Triton kernels, for channels-last images on a GPU.

Memory bounds them. One after the other they read and write whole images again and again, and an index of 8 bytes for each
pooled pixel. Here images are read once for the statistics and once for the outputs; in the backward pass once for the sums of
the gradients and once for the gradient. Which pixel was the largest is computed again, not kept.

The rounding is torch's: a normalised pixel is rounded to the images' type before it is compared, so that there are the same
ties, of which the first wins. Triton's interpreter runs the kernels on a CPU (TRITON_INTERPRET=1 when this is imported).
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

ROWS, CHANNELS = 16, 64  # pixels after the pool, and channels, that a program holds at a time
PROGRAMS = 512  # that share the pixels of a block of channels, where they sum: a few for each processor of a GPU


@triton.jit
def _place(output, k, height, width, channels, channel):
    """Where the k-th of the four pixels under each output pixel lies in images of `height` x `width`."""
    column, rest = output % (width // 2), output // (width // 2)
    row, image = rest % (height // 2), rest // (height // 2)
    pixel = (image * height + 2 * row + k // 2) * width + 2 * column + k % 2
    return pixel[:, None] * channels + channel[None, :]


@triton.jit
def _of_channels(means, scales, shifts, channel, inside):
    """What normalises a program's channels, each of shape [1, channels]."""
    mean = tl.load(means + channel, mask=inside, other=0.0)
    scale = tl.load(scales + channel, mask=inside, other=0.0)
    shift = tl.load(shifts + channel, mask=inside, other=0.0)
    return mean[None, :], scale[None, :], shift[None, :]


@triton.jit
def _largest(images, output, channel, mask, mean, scale, shift, height, width, channels):
    """The largest normalised value under each output pixel, the value of that pixel before, and which of the four it was."""
    best = tl.full(mask.shape, float("-inf"), tl.float32)
    pixel = tl.full(mask.shape, 0.0, tl.float32)
    winner = tl.full(mask.shape, 0, tl.int32)
    for k in tl.static_range(4):
        place = _place(output, k, height, width, channels, channel)
        x = tl.load(images + place, mask=mask, other=0.0).to(tl.float32)
        value = ((x - mean) * scale + shift).to(images.dtype.element_ty).to(tl.float32)
        larger = (value > best) | (value != value)  # NaN is not hidden
        best = tl.where(larger, value, best)
        pixel = tl.where(larger, x, pixel)
        winner = tl.where(larger, k, winner)
    return best, pixel, winner


@triton.jit
def _moments(images, partial, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Count, mean and squared distances from it of the pixels that each program sees: `partial` [programs, 3, channels]."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    count = tl.full([CHANNELS], 0.0, tl.float32)
    mean = tl.full([CHANNELS], 0.0, tl.float32)
    squares = tl.full([CHANNELS], 0.0, tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < pixels)[:, None] & inside[None, :]
        x = tl.load(images + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        more = tl.minimum(pixels - start, ROWS).to(tl.float32)
        its_mean = tl.sum(x, 0) / more
        distance = tl.where(mask, x - its_mean[None, :], 0.0)
        difference, share = its_mean - mean, more / (count + more)
        mean += difference * share  # Chan, Golub & LeVeque 1979
        squares += tl.sum(distance * distance, 0) + difference * difference * count * share
        count += more
    place = partial + tl.program_id(0) * 3 * channels + channel
    tl.store(place, count, mask=inside)
    tl.store(place + channels, mean, mask=inside)
    tl.store(place + 2 * channels, squares, mask=inside)


@triton.jit
def _outputs(
    images, outputs, means, scales, shifts, pixels, height, width, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mask = (output < pixels)[:, None] & inside[None, :]
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    best, _, _ = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels)
    tl.store(outputs + output[:, None] * channels + channel[None, :], tl.where(best <= 0, 0.0, best), mask=mask)


@triton.jit
def _sums(
    images,
    gradients,
    partial,
    means,
    scales,
    shifts,
    pixels,
    height,
    width,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Over the pixels that each program sees the sums of the gradient, and of it times the distance from the mean."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    first = tl.full([CHANNELS], 0.0, tl.float32)
    second = tl.full([CHANNELS], 0.0, tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        output = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (output < pixels)[:, None] & inside[None, :]
        best, pixel, _ = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels)
        place = output[:, None] * channels + channel[None, :]
        gradient = tl.load(gradients + place, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.where(best <= 0, 0.0, gradient)
        first += tl.sum(gradient, 0)
        second += tl.sum(gradient * (pixel - mean), 0)
    place = partial + tl.program_id(0) * 2 * channels + channel
    tl.store(place, first, mask=inside)
    tl.store(place + channels, second, mask=inside)


@triton.jit
def _image_gradients(
    images,
    gradients,
    found,
    means,
    scales,
    shifts,
    constants,
    slopes,
    pixels,
    height,
    width,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of each pixel: scale * (gradient of the output that it is the largest of) + constant + slope * distance from the mean."""
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mask = (output < pixels)[:, None] & inside[None, :]
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    constant = tl.load(constants + channel, mask=inside, other=0.0)[None, :]
    slope = tl.load(slopes + channel, mask=inside, other=0.0)[None, :]
    best, _, winner = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels)
    gradient = tl.load(gradients + output[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    gradient = scale * tl.where(best <= 0, 0.0, gradient)
    for k in tl.static_range(4):
        place = _place(output, k, height, width, channels, channel)
        x = tl.load(images + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(winner == k, gradient, 0.0) + constant + slope * (x - mean)
        tl.store(found + place, value, mask=mask)


class _NormPoolRelu(torch.autograd.Function):
    """Images [n, channels, height, width], both even, channels-last; outputs, batch mean and (biased) variance."""

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, channels, height, width = images.shape
        pixels, blocks = images.numel() // channels, triton.cdiv(channels, CHANNELS)
        programs = min(triton.cdiv(pixels, ROWS), PROGRAMS)
        partial = images.new_empty(programs, 3, channels, dtype=torch.float32)
        _moments[programs, blocks](images, partial, pixels, channels, ROWS, CHANNELS)
        counts, means, squares = partial.unbind(1)
        mean = (means * counts).sum(0) / pixels
        variance = (squares + counts * (means - mean).square()).sum(0) / pixels
        scale = weight * torch.rsqrt(variance + epsilon)
        outputs = images.new_empty(count, channels, height // 2, width // 2).to(memory_format=torch.channels_last)
        grid = (triton.cdiv(pixels // 4, ROWS), blocks)
        _outputs[grid](images, outputs, mean, scale, bias, pixels // 4, height, width, channels, ROWS, CHANNELS)
        context.save_for_backward(images, bias, mean, variance, scale)
        context.epsilon = epsilon
        context.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, bias, mean, variance, scale = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        _, channels, height, width = images.shape
        pixels, blocks = images.numel() // channels, triton.cdiv(channels, CHANNELS)
        size = (pixels // 4, height, width, channels, ROWS, CHANNELS)
        grid = (triton.cdiv(pixels // 4, ROWS), blocks)
        programs = min(grid[0], PROGRAMS)
        partial = images.new_empty(programs, 2, channels, dtype=torch.float32)
        _sums[programs, blocks](images, gradient, partial, mean, scale, bias, *size)
        to_bias, with_distance = partial.sum(0)
        inverse = torch.rsqrt(variance + context.epsilon)
        constant, slope = -scale * to_bias / pixels, -scale * with_distance * inverse.square() / pixels
        found = torch.empty_like(images)
        _image_gradients[grid](images, gradient, found, mean, scale, bias, constant, slope, *size)
        return found, with_distance * inverse, to_bias, None


class NormPoolRelu2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, `nn.MaxPool2d(2)` and `nn.ReLU` in one, with the parameters and buffers of the first."""

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, channels, height, width] to [n, channels, height // 2, width // 2], in the images' type."""
        odd = images.shape[2] % 2 or images.shape[3] % 2  # the pool leaves out pixels that the statistics have
        if odd or not self.training or self.momentum is None:
            return functional.relu(functional.max_pool2d(super().forward(images), 2))
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        images = images.contiguous(memory_format=torch.channels_last)
        outputs, mean, variance = _NormPoolRelu.apply(images, self.weight, self.bias, self.eps)
        count = images.numel() // images.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))  # as torch keeps it
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return outputs
