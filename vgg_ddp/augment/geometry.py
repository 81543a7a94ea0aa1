"""Where the pixels of the network's input come from: resizing, cropping, flipping, rotating.

Every augmentation of this kind comes down to a box in the source image that is scaled to a square (`Placement.box`), and to
which row and column of that square each output pixel takes (`Placement.rows`, `columns`), which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.order import Slice
from vgg_ddp.randomness import random_words, seeds, uniform

# Width over height of a random resized crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6).
RATIOS = (3 / 4, 4 / 3)
TRIES = 10  # boxes drawn before a random resized crop takes the largest one in the middle


@dataclass(frozen=True)
class Placement:
    """Where a batch's output pixels come from.

    Attributes:
        box: top, left, bottom, right of the region of each source image that is scaled to the output square, in pixels,
            float64[n, 4]. Where nothing is resized, they are whole numbers and the box has the output's size.
        rows, columns: which row and column of the square each output row and column takes, int64[n, size]; None where each
            takes its own. Positions outside of the image are reflected into it.
        flip: which images are mirrored left to right after that, bool[n]; None where none is.
        angle: rotation counter-clockwise, degrees, float64[n]; None where nothing turns.
    """

    box: NDArray[np.float64]
    rows: NDArray[np.int64] | None
    columns: NDArray[np.int64] | None
    flip: NDArray[np.bool_] | None
    angle: NDArray[np.float64] | None


@dataclass(frozen=True)
class Geometry:
    """What is done to the shape of each image: resize, reflect-pad, crop, flip, rotate, in this order.

    Attributes:
        seed: seed of the random numbers; None for evaluation, which takes the centre and never flips or turns.
        size: side of the output, pixels.
        resize: the shorter side after resizing is drawn from this range, pixels, both ends included; None keeps the size.
        area: share of the source's area that a random resized crop takes, drawn from this range; None is off.
        padding: reflect padding before the crop, pixels.
        flip: whether to mirror left to right: with probability 1/2, or ("alternating") each image in every second epoch
            (airbench94, Jordan 2024, arXiv 2404.00498, section 3.6).
        rotation: largest angle, degrees.
        random_operations: operations of RandAugment on each image; 0 is off.
        random_magnitude: their strength, of 31 levels.
    """

    seed: int | None
    size: int
    resize: tuple[int, int] | None = None
    area: tuple[float, float] | None = None
    padding: int = 0
    flip: bool | str = False
    rotation: float = 0.0
    random_operations: int = 0
    random_magnitude: int = 0

    @property
    def resamples(self) -> bool:
        """Whether boxes are scaled, and pixels not only moved."""
        return self.resize is not None or self.area is not None

    @property
    def is_crop(self) -> bool:
        """Whether pixels are only moved by whole numbers of pixels: cropped, reflected, mirrored."""
        return not self.resamples and not self.rotation and not self.random_operations

    def coins(self, samples: int) -> NDArray[np.bool_] | None:
        """Which of the first `samples` samples are mirrored in even epochs, bool[samples]; None unless flips alternate."""
        if self.flip != "alternating" or self.seed is None:
            return None
        return _coins(self.seed, 1 << (samples - 1).bit_length())[:samples]

    def place(self, piece: Slice, shapes: NDArray[np.int64]) -> Placement:
        """Where the images at the positions of `piece` come from, given their heights and widths, int64[n, 2]."""
        shift = np.zeros_like(shapes)
        if self.area is not None:
            box = self._random_boxes(piece, shapes)
        else:
            resized = resized_shapes(shapes, self._shorter_sides(piece))
            offset = self._offsets(piece, resized) - self.padding  # may lie outside of the image
            start = np.clip(offset, 0, resized - self.size)
            shift = offset - start
            scale = shapes / resized
            box = np.concatenate([start * scale, (start + self.size) * scale], axis=1)
        rows = columns = angle = None
        if self.padding:
            steps = np.arange(self.size)
            rows, columns = (_reflect(shift[:, axis : axis + 1] + steps, self.size) for axis in (0, 1))
        flip = self._flips(piece) if self.flip and self.seed is not None else None
        if self.rotation and self.seed is not None:
            turn = piece.uniform(self.seed, "rotation")
            angle = (2 * turn[:, 0] - 1) * self.rotation
        return Placement(box, rows, columns, flip, angle)

    def random_seeds(self, piece: Slice) -> NDArray[np.int64]:
        """A seed for RandAugment on each image, int64[n]."""
        assert self.seed is not None, "evaluation does not augment"
        return seeds(piece.random_words(self.seed, "randaugment"))

    def _shorter_sides(self, piece: Slice) -> NDArray[np.int64] | None:
        if self.resize is None:
            return None
        low, high = self.resize
        if self.seed is None or low == high:
            return np.full(len(piece.samples), low)
        return low + (piece.uniform(self.seed, "scale")[:, 0] * (high - low + 1)).astype(np.int64)

    def _offsets(self, piece: Slice, shapes: NDArray[np.int64]) -> NDArray[np.int64]:
        """First row and column of each crop in the padded image, [n, 2].

        A share in [0, 1) becomes one of room + 1 whole offsets, each equally likely; 1/2 is the centre.
        """
        room = shapes + 2 * self.padding - self.size
        if self.seed is None:
            return (0.5 * (room + 1)).astype(np.int64)
        place = piece.uniform(self.seed, "crop")[:, :2]
        return (place * (room + 1)).astype(np.int64)

    def _flips(self, piece: Slice) -> NDArray[np.bool_]:
        assert self.seed is not None, "evaluation does not flip"
        if self.flip == "alternating":
            coins = self.coins(int(piece.samples.max(initial=0)) + 1)
            assert coins is not None
            return coins[piece.samples] ^ bool(piece.epoch % 2)
        return piece.uniform(self.seed, "flip")[:, 0] < 0.5

    def _random_boxes(self, piece: Slice, shapes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Boxes of random area and shape, whole pixels, drawn as torchvision's RandomResizedCrop does; [n, 4]."""
        assert self.area is not None and self.seed is not None, "evaluation takes the centre"
        count, (low, high) = len(shapes), self.area
        sides = np.zeros_like(shapes)
        place = np.zeros((count, 2))
        found = np.zeros(count, dtype=bool)
        for attempt in range(TRIES):
            draws = piece.uniform(self.seed, f"area {attempt}")
            area = shapes.prod(axis=1) * (low + draws[:, 0] * (high - low))
            ratio = np.exp(np.log(RATIOS[0]) + draws[:, 1] * np.log(RATIOS[1] / RATIOS[0]))
            drawn = np.stack([np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))], axis=1).astype(np.int64)
            take = ~found & (drawn >= 1).all(axis=1) & (drawn <= shapes).all(axis=1)
            sides[take], place[take] = drawn[take], draws[take, 2:]
            found |= take
            if found.all():
                break
        height, width = shapes[:, 0], shapes[:, 1]
        widest, tallest = np.rint(height * RATIOS[1]), np.rint(width / RATIOS[0])
        middle = np.stack([np.minimum(height, tallest), np.minimum(width, widest)], axis=1).astype(np.int64)
        sides = np.where(found[:, None], sides, middle)
        place = np.where(found[:, None], place, 0.5)
        start = (place * (shapes - sides + 1)).astype(np.int64)
        return np.concatenate([start, start + sides], axis=1).astype(np.float64)


def training_geometry(data: DataConfig, config: AugmentConfig, seed: int) -> Geometry:
    """The geometry of training images, drawn from streams of `seed`."""
    assert config.flip != "auto", "settled against the data set first"
    fixed = None if data.shorter_side is None else [data.shorter_side] * 2
    resize, area = config.scale_jitter or fixed, config.random_resized_crop
    return Geometry(
        seed,
        data.image_size,
        resize=None if resize is None else (resize[0], resize[1]),
        area=None if area is None else (area[0], area[1]),
        padding=config.crop_padding,
        flip=config.flip,
        rotation=config.rotation,
        random_operations=0 if config.randaugment is None else config.randaugment_operations,
        random_magnitude=config.randaugment or 0,
    )


def evaluation_geometry(data: DataConfig) -> Geometry:
    """The geometry of every image that a network is evaluated on: resized to `data.resize`, cropped at the centre."""
    side = data.shorter_side
    return Geometry(None, data.image_size, None if side is None else (side, side))


def resized_shapes(shapes: NDArray[np.int64], shorter: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Heights and widths [n, 2] after scaling the shorter side to `shorter` [n]; the longer is rounded down."""
    if shorter is None:
        return shapes
    return shapes * shorter[:, None] // shapes.min(axis=1, keepdims=True)


def _reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold indices that lie outside of [0, length) back, without repeating the edge."""
    index = np.abs(index)
    return np.where(index >= length, 2 * (length - 1) - index, index)


@lru_cache(maxsize=2)
def _coins(seed: int, count: int) -> NDArray[np.bool_]:
    """A fair coin for each of `count` samples, the same in every epoch."""
    return uniform(random_words(seed, 0, "alternating flip", 0, count))[:, 0] < 0.5
