"""Makes an image folder of larger pictures, with objects of very different sizes, to try training and test scales on.

    python -m benchmarks.made_pictures FOLDER [--each 150] [--side 96] [--seed 0]

Made pictures are not photographs: results on them show how the procedures differ, not what they reach on ImageNet.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
SMALLEST, LARGEST = 0.22, 0.85  # of an object, as a share of the picture's shorter side
BRIGHT = 128  # objects have this value or more in each colour, backgrounds less, so that an outline is always visible
NOISE = 8  # standard deviation, of 255
FINER = 3  # pictures are drawn this many times larger, then shrunk


def _around(radii: list[float]) -> Points:
    """A closed outline through points at these distances from the centre, at equal angles."""
    angles = [2 * math.pi * k / len(radii) for k in range(len(radii))]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles)]


OUTLINES: dict[str, Points] = {
    "disc": _around([1.0] * 48),
    "triangle": _around([1.0] * 3),
    "square": _around([1.0] * 4),
    "hexagon": _around([1.0] * 6),
    "star": _around([1.0, 0.45] * 5),
    "gear": _around([1.0, 1.0, 0.75, 0.75] * 8),
    "cross": [(x, y) for x, y in [(1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3)]]
    + [(x, y) for x, y in [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3)]],
    "moon": [(math.cos(a), math.sin(a)) for a in np.linspace(0.7, 2 * math.pi - 0.7, 30)]
    + [(0.35 + 0.75 * math.cos(a), 0.75 * math.sin(a)) for a in np.linspace(2 * math.pi - 1.0, 1.0, 30)],
}


def picture(name: str, side: int, random: np.random.Generator) -> Image.Image:
    """A bright object of a class on a dark, noisy background: its size, place, angle, aspect and colours are random."""
    width, height = side, int(side * random.uniform(1, 1.4))
    if random.random() < 0.5:
        width, height = height, width
    canvas = _background(width, height, random)
    draw = ImageDraw.Draw(canvas)
    radius = FINER * side / 2 * math.exp(random.uniform(math.log(SMALLEST), math.log(LARGEST)))
    angle, narrow = random.uniform(0, 2 * math.pi), random.uniform(0.75, 1)
    centre = [random.uniform(radius, FINER * length - radius) for length in (width, height)]
    turned = [
        (
            centre[0] + radius * (x * math.cos(angle) - narrow * y * math.sin(angle)),
            centre[1] + radius * (x * math.sin(angle) + narrow * y * math.cos(angle)),
        )
        for x, y in OUTLINES[name]
    ]
    draw.polygon(turned, fill=_colour(random))
    shrunk = canvas.resize((width, height), Image.Resampling.LANCZOS)
    noisy = np.asarray(shrunk, np.float64) + random.normal(0, NOISE, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _background(width: int, height: int, random: np.random.Generator) -> Image.Image:
    coarse: NDArray[np.uint8] = random.integers(
        0, BRIGHT, (random.integers(2, 7), random.integers(2, 7), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((FINER * width, FINER * height), Image.Resampling.BICUBIC)


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in random.integers(BRIGHT, 256, 3))
    return red, green, blue


def make(folder: Path, each: int, side: int, seed: int) -> None:
    """Write `each` training and half as many test pictures of each class, as JPEG: FOLDER/SPLIT/CLASS/NUMBER.jpg.

    Args:
        side: pixels of the shorter side.
    """
    for number, (split, count) in enumerate((("train", each), ("test", max(1, each // 2)))):
        for kind, name in enumerate(OUTLINES):
            random = np.random.default_rng([seed, number, kind])
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                picture(name, side, random).save(place / f"{k:04}.jpg", quality=90)


def main() -> None:
    """Make the folder that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=150, help="training pictures of each class (150)")
    parser.add_argument("--side", type=int, default=96, help="pixels of the shorter side (96)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.folder, options.each, options.side, options.seed)


if __name__ == "__main__":
    main()
