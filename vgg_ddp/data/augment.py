"""Augmentation as pure functions: parameters drawn from (seed, epoch, position), and pixels made from parameters.

`draw` is what all loaders share. `crop`, `rotate` and `resize` are the reference that every other loader is held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as transforms

from vgg_ddp.config.schema import AugmentConfig
from vgg_ddp.data.order import Slice, random_words, uniform


@dataclass(frozen=True)
class Parameters:
    """What happens to each image of a batch.

    Attributes:
        crop_y, crop_x: where the crop lies, float64[n], as a share in [0, 1] of the room that the (padded) image leaves.
        flip: whether to mirror left to right, bool[n].
        angle: rotation counter-clockwise in degrees, float64[n].
    """

    crop_y: NDArray[np.float64]
    crop_x: NDArray[np.float64]
    flip: NDArray[np.bool_]
    angle: NDArray[np.float64]


def draw(config: AugmentConfig, seed: int, part: Slice) -> Parameters:
    """The parameters of the samples at the positions of `part`."""
    place = uniform(random_words(seed, part.epoch, "crop", part.start, part.stop))
    coin = uniform(random_words(seed, part.epoch, "flip", part.start, part.stop))
    turn = uniform(random_words(seed, part.epoch, "rotation", part.start, part.stop))
    return Parameters(
        crop_y=place[:, 0],
        crop_x=place[:, 1],
        flip=(coin[:, 0] < 0.5) & config.flip,
        angle=(2 * turn[:, 0] - 1) * config.rotation,
    )


def centred(part: Slice) -> Parameters:
    """The parameters of evaluation: centre crop, nothing else."""
    count = len(part.samples)
    half = np.full(count, 0.5)
    return Parameters(half, half, np.zeros(count, dtype=bool), np.zeros(count))


def resized_shapes(shapes: NDArray[np.int64], shorter: int | None) -> NDArray[np.int64]:
    """Heights and widths [n, 2] after scaling the shorter side to `shorter`; the longer is rounded down."""
    if shorter is None:
        return shapes
    return shapes * shorter // shapes.min(axis=1, keepdims=True)


def crop_offsets(parameters: Parameters, shapes: NDArray[np.int64], size: int, padding: int) -> NDArray[np.int64]:
    """First row and column of each crop in the padded image, [n, 2].

    A share in [0, 1) becomes one of room + 1 whole offsets, each equally likely; 1/2 is the centre.

    Args:
        shapes: heights and widths before padding, [n, 2].
        size: side of the crop, pixels.
        padding: pixels on each side.
    """
    room = shapes + 2 * padding - size
    place = np.stack([parameters.crop_y, parameters.crop_x], axis=1)
    return (place * (room + 1)).astype(np.int64)


def crop(
    images: NDArray[np.uint8], offsets: NDArray[np.int64], flip: NDArray[np.bool_], size: int, padding: int
) -> NDArray[np.uint8]:
    """Reflect-pad (without repeating the edge), crop to a square, mirror; exact, no interpolation.

    Args:
        images: n x height x width x channels.
        offsets: first row and column of each crop, [n, 2].
        flip: whether to mirror left to right, [n].
        size: side of the crop, pixels.
        padding: pixels on each side, less than height and width.

    Returns:
        n x size x size x channels.
    """
    count, height, width, _ = images.shape
    steps = np.arange(size) - padding
    rows, columns = offsets[:, :1] + steps, offsets[:, 1:] + steps
    columns = np.where(flip[:, None], columns[:, ::-1], columns)
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    return images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    index = np.abs(index)
    return np.where(index >= length, 2 * (length - 1) - index, index)


def rotate(image: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """Rotate about the centre, bilinear, black outside; height x width x channels."""
    turned = transforms.rotate(_chw(image), angle, interpolation=transforms.InterpolationMode.BILINEAR)
    return _hwc(turned)


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale to height x width, bilinear with antialiasing; height x width x channels."""
    return _hwc(transforms.resize(_chw(image), [height, width], antialias=True))


def _chw(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def _hwc(image: torch.Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).contiguous().numpy()
