"""At which size the images of a data set are trained on, where the configuration leaves it to the images."""

from __future__ import annotations

import msgspec
import numpy as np

from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data.dataset import Split

MUCH_LARGER = 1.5  # times the size that the network sees: a crop of that size would show a part of the picture only
ROOM = (8, 7)  # resized side to crop, the paper's 256 to 224


def settle(config: DataConfig, split: Split) -> tuple[DataConfig, list[str]]:
    """The configuration with numbers for `resize: auto` and `photo_size`, and what was chosen, a line each.

    Images that are much larger than the network's input are shown to it whole, resized, not in crops of themselves; images
    that are smaller are enlarged.
    """
    shapes = split.shapes(np.arange(len(split)))
    shorter = shapes.min(axis=1)
    choices = []
    size = config.image_size
    if config.photo_size is not None:
        if np.median(shorter) >= config.photo_size:
            size = config.photo_size
            choices.append(f"data.image_size={size}: half of the images have {int(np.median(shorter))} pixels or more")
        config = msgspec.structs.replace(config, image_size=size, photo_size=None)
    if config.resize != "auto":
        return config, choices
    resize = None
    if shorter.max() >= MUCH_LARGER * size:
        resize = size * ROOM[0] // ROOM[1]
    elif shorter.min() < size:
        resize = size
    if resize is not None:
        choices.append(
            f"data.resize={resize}: images of {_range(shorter)} pixels, of which the network sees {size} x {size}"
        )
    return msgspec.structs.replace(config, resize=resize), choices


def _range(sides: np.ndarray) -> str:
    low, high = int(sides.min()), int(sides.max())
    return f"{low}" if low == high else f"{low} to {high}"
