"""Pixels moved and resampled: what `geometry` says, done to uint8 images with channels last.

Scaling is one definition for every loader: a triangle filter that widens as it shrinks (antialiasing), centred on the output
pixels' centres, the image's edge repeated outside of it. It is what DALI's linear resize does. `resample` does it one image at
a time with Pillow, `resample_batch` for equal shapes on any device; they differ by one level of 255 at most.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vgg_ddp.augment.geometry import Geometry, Placement, resized_shapes
from vgg_ddp.augment.philox import DeviceSlice

AT_A_TIME = 2**28  # bytes of float pixels that are scaled at a time, or one image


def finish(windows: Tensor, placement: Placement) -> Tensor:
    """Reflect, mirror and turn a batch of squares, uint8 [n, size, size, 3], on their device."""
    if placement.rows is not None:
        windows = take(windows, np.arange(len(windows)), placement)
    elif placement.flip is not None:
        windows = mirror(windows, placement.flip)
    return windows if placement.angle is None else rotate(windows, placement.angle)


def mirror(images: Tensor, flip: NDArray[np.bool_]) -> Tensor:
    """The images [n, height, width, 3], those that `flip` says mirrored left to right."""
    which = on_device(images, np.flatnonzero(flip))
    mirrored = images.clone()
    mirrored[which] = images.index_select(0, which).flip(2)
    return mirrored


def take(images: Tensor, which: NDArray[np.int64], placement: Placement) -> Tensor:
    """The pixels that a placement's rows and columns name, mirrored where it says so.

    Args:
        images: uint8 [count, height, width, 3].
        which: the image of each output image, int64[n].

    Returns:
        uint8 [n, size, size, 3].
    """
    rows, columns = placement.rows, placement.columns
    assert rows is not None and columns is not None, "each pixel takes its own"
    if placement.flip is not None:
        columns = np.where(placement.flip[:, None], columns[:, ::-1], columns)
    return _gather(images, *(on_device(images, index) for index in (which, rows, columns)))


def crop(images: Tensor, piece: DeviceSlice, geometry: Geometry, coins: Tensor | None) -> Tensor:
    """What `take` gives for `geometry.place(piece, ...)`, computed on the device alone: crops of reflected images, mirrored.

    Args:
        images: uint8 [count, height, width, 3], of which the piece's samples are taken.
        coins: of alternating flips, for every sample, bool [count].

    Returns:
        uint8 [n, size, size, 3].
    """
    assert geometry.seed is not None and geometry.is_crop
    size, padding = geometry.size, geometry.padding
    steps = torch.arange(size, device=images.device)
    draws, lines = piece.uniform(geometry.seed, "crop"), []
    for axis, length in enumerate(images.shape[1:3]):
        offset = (draws[:, axis, None] * (length + 2 * padding - size + 1)).long() - padding
        start = offset.clamp(0, length - size)
        inside = (offset - start + steps).abs()
        lines.append(start + torch.where(inside >= size, 2 * (size - 1) - inside, inside))
    rows, columns = lines
    if geometry.flip:
        if coins is None:
            flip = piece.uniform(geometry.seed, "flip")[:, 0] < 0.5
        else:
            flip = coins[piece.samples] ^ (piece.epoch % 2).bool()
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    return _gather(images, piece.samples, rows, columns)


def _gather(images: Tensor, which: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at `rows` x `columns`, int64 [n, size] each, of the images `which`, int64 [n]."""
    count, height, width, channels = images.shape
    size = columns.shape[1]
    lines = which[:, None] * height + rows  # rows of all images, numbered through
    values = (columns[:, :, None] * channels + torch.arange(channels, device=images.device)).flatten(1)
    picked = images.reshape(count * height, width * channels).index_select(0, lines.flatten())
    picked = picked.view(len(which), size, width * channels)
    return picked.gather(2, values[:, None].expand(-1, size, -1)).view(-1, size, size, channels)


def rotate(images: Tensor, angle: NDArray[np.float64]) -> Tensor:
    """Rotate each image about its centre, counter-clockwise by `angle` degrees, bilinear, black outside."""
    turn = torch.from_numpy(np.deg2rad(angle)).float()
    cosine, sine, zero = turn.cos(), turn.sin(), torch.zeros(len(turn))
    matrix = torch.stack([torch.stack([cosine, -sine, zero], dim=1), torch.stack([sine, cosine, zero], dim=1)], dim=1)
    planes = images.permute(0, 3, 1, 2).float()
    grid = torch.nn.functional.affine_grid(
        matrix.to(images.device, non_blocking=True), list(planes.shape), align_corners=False
    )
    turned = torch.nn.functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def window(image: NDArray[np.uint8], box: NDArray[np.float64], geometry: Geometry) -> NDArray[np.uint8]:
    """What lies in a box of an image (top, left, bottom, right), scaled if the geometry scales; size x size x channels."""
    if geometry.resamples:
        return resample(image, box, (geometry.size, geometry.size))
    top, left = box[:2].astype(int)
    return image[top : top + geometry.size, left : left + geometry.size]


def resample(image: NDArray[np.uint8], box: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale the region of an image inside `box` (top, left, bottom, right) to `shape`; height x width x channels."""
    top, left, bottom, right = (float(edge) for edge in box)
    height, width = shape
    margin = math.ceil(max((bottom - top) / height, (right - left) / width, 1)) + 1  # how far the filter reaches
    (first, last), (start, stop) = (
        (max(0, math.floor(low) - margin), math.ceil(high) + margin) for low, high in ((top, bottom), (left, right))
    )
    around = image[first:last, start:stop]
    padded = np.pad(around, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    down, across = margin - first, margin - start
    scaled = Image.fromarray(padded).resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left + across, top + down, right + across, bottom + down),
    )
    return np.asarray(scaled)


def resized(image: NDArray[np.uint8], shorter: int | None) -> NDArray[np.uint8]:
    """A whole image with its shorter side scaled to `shorter` pixels; None keeps its size."""
    shape = np.array([image.shape[:2]])
    ((height, width),) = resized_shapes(shape, None if shorter is None else np.array([shorter]))
    if (height, width) == image.shape[:2]:
        return image
    return resample(image, np.array([0.0, 0.0, *image.shape[:2]]), (int(height), int(width)))


def resample_batch(images: Tensor, which: NDArray[np.int64], box: NDArray[np.float64], size: int) -> Tensor:
    """`resample` for n images of one shape, so many at a time that their sources as float take `AT_A_TIME` bytes at most.

    Args:
        images: uint8 [count, height, width, 3].
        which: the image of each output image, int64[n].
        box: top, left, bottom, right, float64[n, 4].

    Returns:
        uint8 [n, size, size, 3].
    """
    margins = [_margin(box[:, axis], box[:, axis + 2], size) for axis in (0, 1)]  # of all, so that each sum is the same
    many = max(1, AT_A_TIME // (4 * math.prod(images.shape[1:])))
    scaled = images.new_empty((len(which), size, size, images.shape[3]))
    for start in range(0, len(which), many):
        part = slice(start, start + many)
        scaled[part] = _resampled(images, which[part], box[part], size, margins)
    return scaled


def _resampled(
    images: Tensor, which: NDArray[np.int64], box: NDArray[np.float64], size: int, margins: list[int]
) -> Tensor:
    """See `resample_batch`. `margins`: of the rows and of the columns, see `_margin`."""
    _, height, width, channels = images.shape
    picked = images.index_select(0, on_device(images, which)).float().view(len(which), height, width * channels)
    rows = on_device(images, _weights(box[:, 0], box[:, 2], size, height, margins[0]))
    columns = on_device(images, _weights(box[:, 1], box[:, 3], size, width, margins[1]))
    lines = torch.bmm(rows, picked).view(-1, size, width, channels)
    scaled = torch.einsum("nswc,ntw->nstc", lines, columns)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _margin(low: NDArray[np.float64], high: NDArray[np.float64], size: int) -> int:
    """The most pixels that the filter reaches beyond an image's edge."""
    return math.ceil(float(np.maximum((high - low) / size, 1.0).max(initial=1.0))) + 1


def _weights(
    low: NDArray[np.float64], high: NDArray[np.float64], size: int, length: int, margin: int
) -> NDArray[np.float32]:
    """How much each source pixel weighs in each output pixel along one axis, [n, size, length]."""
    scale = (high - low) / size
    reach = np.maximum(scale, 1.0)[:, None, None]
    centre = low[:, None] + (np.arange(size) + 0.5) * scale[:, None] - 0.5
    positions = np.arange(-margin, length + margin)
    weights = np.maximum(0.0, 1 - np.abs(positions - centre[:, :, None]) / reach)
    weights /= weights.sum(axis=2, keepdims=True)
    inside = weights[:, :, margin:-margin].copy()
    inside[:, :, 0] += weights[:, :, :margin].sum(axis=2)  # the edge repeats
    inside[:, :, -1] += weights[:, :, -margin:].sum(axis=2)
    return inside.astype(np.float32)


def on_device(like: Tensor, values: NDArray[Any] | Tensor) -> Tensor:
    """`values` on the device of `like`; float64 becomes the type of `like`.

    The copy to a GPU goes through page-locked memory, so that the host does not wait for the GPU's earlier work.
    """
    tensor = torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
    tensor = tensor.to(like.dtype) if tensor.dtype == torch.float64 else tensor
    if like.is_cuda and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)
