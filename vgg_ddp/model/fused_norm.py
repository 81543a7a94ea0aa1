"""Batch norm and ReLU, with a 2x2 max pool between them or without, as one layer of Triton kernels, for channels-last images.

They are bound by memory bandwidth. Run one by one, they read and write whole images again and again and, if they pool,
an index of 8 bytes for each pooled pixel. Here images are read once for the statistics and once for the outputs; in the
backward pass once for the sums of the gradients and once for the gradient. Which pixel was the largest is recomputed.

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
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS, CHANNELS = 16, 64  # pixels after the pool, and channels, that a program holds at a time
PROGRAMS = 2048  # that share the images where they sum: about 16 for each multiprocessor of an H100
PARTS, FEW = 128, 8  # partial sums, and channels, that a program holds while it adds up the sums of all programs
KINDS = (torch.float32, torch.float16, torch.bfloat16)  # of images
SMALLEST = 2**25  # values in a layer's images; from this size on torch's kernels take longer than launching these


@triton.jit
def _place(output, k, height, width, channels, channel, POOL: tl.constexpr):
    """Where the k-th of the POOL x POOL pixels under each output pixel lies in images of `height` x `width`."""
    column, rest = output % (width // POOL), output // (width // POOL)
    row, image = rest % (height // POOL), rest // (height // POOL)
    pixel = (image * height + POOL * row + k // POOL) * width + POOL * column + k % POOL
    return pixel[:, None] * channels + channel[None, :]


@triton.jit
def _block(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's output pixels and channels, which of the channels there are, and which of the values."""
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    return output, channel, inside, (output < pixels)[:, None] & inside[None, :]


@triton.jit
def _parts(partial, start, programs, values, channel, inside, PARTS: tl.constexpr):
    """Where the first of the `values` of each of PARTS programs lies for each channel, and which of these there are."""
    part = start + tl.arange(0, PARTS)
    place = partial + part[:, None] * values + channel[None, :]
    return place, (part < programs)[:, None] & inside[None, :]


@triton.jit
def _of_channels(means, scales, shifts, channel, inside):
    """What normalises a program's channels, each of shape [1, channels]."""
    mean = tl.load(means + channel, mask=inside, other=0.0)
    scale = tl.load(scales + channel, mask=inside, other=0.0)
    shift = tl.load(shifts + channel, mask=inside, other=0.0)
    return mean[None, :], scale[None, :], shift[None, :]


@triton.jit
def _largest(images, output, channel, mask, mean, scale, shift, height, width, channels, POOL: tl.constexpr):
    """The largest normalised value under each output pixel, the same before normalisation, and its pixel's number."""
    best = tl.full(mask.shape, float("-inf"), tl.float32)
    pixel = tl.full(mask.shape, 0.0, tl.float32)
    winner = tl.full(mask.shape, 0, tl.int32)
    for k in tl.static_range(POOL * POOL):
        place = _place(output, k, height, width, channels, channel, POOL)
        x = tl.load(images + place, mask=mask, other=0.0).to(tl.float32)
        value = ((x - mean) * scale + shift).to(images.dtype.element_ty).to(tl.float32)
        larger = (value > best) | (value != value)  # NaN is not hidden
        best = tl.where(larger, value, best)
        pixel = tl.where(larger, x, pixel)
        winner = tl.where(larger, k, winner)
    return best, pixel, winner


@triton.jit
def _moments(images, partial, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Count, mean and squared distances from it of the pixels that each program sees: `partial` [programs, 3, channels].

    Each of its rows is summed by itself (Welford 1962), since a sum over rows waits for all threads; at the end they are
    combined (Chan, Golub & LeVeque 1979).
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    count = tl.full([ROWS, 1], 0.0, tl.float32)
    mean = tl.full([ROWS, CHANNELS], 0.0, tl.float32)
    squares = tl.full([ROWS, CHANNELS], 0.0, tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (row < pixels) & inside[None, :]
        x = tl.load(images + row * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        count += (row < pixels).to(tl.float32)
        distance = tl.where(mask, x - mean, 0.0)
        mean += distance * (1.0 / tl.maximum(count, 1.0))
        squares += distance * tl.where(mask, x - mean, 0.0)
    total = tl.sum(count, 0)
    whole = tl.sum(mean * count, 0) / total
    distance = mean - whole[None, :]
    place = partial + tl.program_id(0) * 3 * channels + channel
    tl.store(place, total + tl.full([CHANNELS], 0.0, tl.float32), mask=inside)
    tl.store(place + channels, whole, mask=inside)
    tl.store(place + 2 * channels, tl.sum(squares + distance * distance * count, 0), mask=inside)


@triton.jit
def _statistics(
    partial,
    weights,
    means,
    variances,
    scales,
    running_means,
    running_variances,
    programs,
    pixels,
    channels,
    epsilon,
    momentum,
    PARTS: tl.constexpr,
    FEW: tl.constexpr,
):
    """Mean, biased variance and scale of each channel from what `_moments` found; the running statistics, as torch has them."""
    channel = tl.program_id(0) * FEW + tl.arange(0, FEW)
    inside = channel < channels
    total = tl.full([FEW], 0.0, tl.float32)
    for start in range(0, programs, PARTS):
        place, mask = _parts(partial, start, programs, 3 * channels, channel, inside, PARTS)
        count = tl.load(place, mask=mask, other=0.0)
        total += tl.sum(count * tl.load(place + channels, mask=mask, other=0.0), 0)
    mean = total / pixels
    squares = tl.full([FEW], 0.0, tl.float32)
    for start in range(0, programs, PARTS):
        place, mask = _parts(partial, start, programs, 3 * channels, channel, inside, PARTS)
        count = tl.load(place, mask=mask, other=0.0)
        distance = tl.load(place + channels, mask=mask, other=0.0) - mean[None, :]
        squares += tl.sum(tl.load(place + 2 * channels, mask=mask, other=0.0) + count * distance * distance, 0)
    variance = squares / pixels
    weight = tl.load(weights + channel, mask=inside, other=0.0)
    tl.store(means + channel, mean, mask=inside)
    tl.store(variances + channel, variance, mask=inside)
    tl.store(scales + channel, weight * tl.rsqrt(variance + epsilon), mask=inside)
    running = tl.load(running_means + channel, mask=inside, other=0.0)
    tl.store(running_means + channel, running + momentum * (mean - running), mask=inside)
    running = tl.load(running_variances + channel, mask=inside, other=0.0)
    unbiased = squares / (pixels - 1)
    tl.store(running_variances + channel, running + momentum * (unbiased - running), mask=inside)


@triton.jit
def _outputs(
    images,
    outputs,
    means,
    scales,
    shifts,
    pixels,
    height,
    width,
    channels,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    output, channel, inside, mask = _block(pixels, channels, ROWS, CHANNELS)
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    best, _, _ = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels, POOL)
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
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The sums, over each program's pixels, of the gradient and of the gradient times the distance from the mean."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    first = tl.full([ROWS, CHANNELS], 0.0, tl.float32)
    second = tl.full([ROWS, CHANNELS], 0.0, tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        output = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (output < pixels)[:, None] & inside[None, :]
        best, pixel, _ = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels, POOL)
        place = output[:, None] * channels + channel[None, :]
        gradient = tl.load(gradients + place, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.where(best <= 0, 0.0, gradient)
        first += gradient
        second += gradient * (pixel - mean)
    place = partial + tl.program_id(0) * 2 * channels + channel
    tl.store(place, tl.sum(first, 0), mask=inside)
    tl.store(place + channels, tl.sum(second, 0), mask=inside)


@triton.jit
def _slopes(
    partial,
    variances,
    scales,
    to_weights,
    to_biases,
    constants,
    slopes,
    programs,
    pixels,
    channels,
    epsilon,
    PARTS: tl.constexpr,
    FEW: tl.constexpr,
):
    """The gradients of weights and biases, and what `_image_gradients` adds for each channel, from what `_sums` found."""
    channel = tl.program_id(0) * FEW + tl.arange(0, FEW)
    inside = channel < channels
    first = tl.full([FEW], 0.0, tl.float32)
    second = tl.full([FEW], 0.0, tl.float32)
    for start in range(0, programs, PARTS):
        place, mask = _parts(partial, start, programs, 2 * channels, channel, inside, PARTS)
        first += tl.sum(tl.load(place, mask=mask, other=0.0), 0)
        second += tl.sum(tl.load(place + channels, mask=mask, other=0.0), 0)
    scale = tl.load(scales + channel, mask=inside, other=0.0)
    inverse = tl.rsqrt(tl.load(variances + channel, mask=inside, other=1.0) + epsilon)
    tl.store(to_biases + channel, first, mask=inside)
    tl.store(to_weights + channel, second * inverse, mask=inside)
    tl.store(constants + channel, -scale * first / pixels, mask=inside)
    tl.store(slopes + channel, -scale * second * inverse * inverse / pixels, mask=inside)


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
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of each pixel: scale * (gradient of the output that it is the largest of) + constant + slope * distance from the mean."""
    output, channel, inside, mask = _block(pixels, channels, ROWS, CHANNELS)
    mean, scale, shift = _of_channels(means, scales, shifts, channel, inside)
    constant = tl.load(constants + channel, mask=inside, other=0.0)[None, :]
    slope = tl.load(slopes + channel, mask=inside, other=0.0)[None, :]
    best, _, winner = _largest(images, output, channel, mask, mean, scale, shift, height, width, channels, POOL)
    gradient = tl.load(gradients + output[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    gradient = scale * tl.where(best <= 0, 0.0, gradient)
    for k in tl.static_range(POOL * POOL):
        place = _place(output, k, height, width, channels, channel, POOL)
        x = tl.load(images + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(winner == k, gradient, 0.0) + constant + slope * (x - mean)
        tl.store(found + place, value, mask=mask)


class _NormRelu(torch.autograd.Function):
    """Images [n, channels, height, width], channels-last, sides multiples of `pool`; running statistics are updated."""

    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        epsilon: float,
        momentum: float,
        pool: int,
    ) -> Tensor:
        count, channels, height, width = images.shape
        pixels, blocks, few = images.numel() // channels, triton.cdiv(channels, CHANNELS), triton.cdiv(channels, FEW)
        programs = min(triton.cdiv(pixels, ROWS), triton.cdiv(PROGRAMS, blocks))
        partial = images.new_empty(programs, 3, channels, dtype=torch.float32)
        _moments[programs, blocks](images, partial, pixels, channels, ROWS, CHANNELS)
        mean, variance, scale = images.new_empty(3, channels, dtype=torch.float32)
        running = running_mean, running_variance
        size = (programs, pixels, channels, epsilon, momentum)
        _statistics[few,](partial, weight, mean, variance, scale, *running, *size, PARTS, FEW)
        of = (count, channels, height // pool, width // pool)
        outputs = torch.empty(of, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
        left = outputs.numel() // channels
        grid = (triton.cdiv(left, ROWS), blocks)
        _outputs[grid](images, outputs, mean, scale, bias, left, height, width, channels, pool, ROWS, CHANNELS)
        context.save_for_backward(images, bias, mean, variance, scale)
        context.epsilon, context.pool = epsilon, pool
        return outputs

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, bias, mean, variance, scale = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        _, channels, height, width = images.shape
        pixels, left = images.numel() // channels, gradient.numel() // channels
        blocks, few = triton.cdiv(channels, CHANNELS), triton.cdiv(channels, FEW)
        size = (left, height, width, channels, context.pool, ROWS, CHANNELS)
        grid = (triton.cdiv(left, ROWS), blocks)
        programs = min(grid[0], triton.cdiv(PROGRAMS, blocks))
        partial = images.new_empty(programs, 2, channels, dtype=torch.float32)
        _sums[programs, blocks](images, gradient, partial, mean, scale, bias, *size)
        to_weight, to_bias, constant, slope = images.new_empty(4, channels, dtype=torch.float32)
        given = programs, pixels, channels, context.epsilon
        _slopes[few,](partial, variance, scale, to_weight, to_bias, constant, slope, *given, PARTS, FEW)
        if not context.needs_input_grad[0]:  # before it is a layer that is frozen
            return None, to_weight, to_bias, *[None] * 5
        found = torch.empty_like(images)
        _image_gradients[grid](images, gradient, found, mean, scale, bias, constant, slope, *size)
        return found, to_weight, to_bias, *[None] * 5


class FusedNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, `nn.MaxPool2d(2)` if `pool` is 2, and `nn.ReLU` in one, with the state dict of the first.

    Small inputs go through torch's own layers.
    """

    def __init__(self, channels: int, epsilon: float, momentum: float | None, pool: int) -> None:
        super().__init__(channels, epsilon, momentum)
        self.pool = pool

    def extra_repr(self) -> str:
        """As `nn.BatchNorm2d`, with the pool."""
        return f"{super().extra_repr()}, pool={self.pool}"

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, channels, height, width] to [n, channels, height // pool, width // pool], in the images' type."""
        odd = images.shape[2] % self.pool or images.shape[3] % self.pool  # the pool drops what the statistics include
        unknown = images.dtype not in KINDS or self.momentum is None
        if odd or unknown or images.numel() < SMALLEST or not self.training:
            normalised = super().forward(images)
            return functional.relu(functional.max_pool2d(normalised, self.pool) if self.pool > 1 else normalised)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        images = images.contiguous(memory_format=torch.channels_last)
        running = self.running_mean, self.running_var
        found: Tensor = _NormRelu.apply(images, self.weight, self.bias, *running, self.eps, self.momentum, self.pool)
        return found
