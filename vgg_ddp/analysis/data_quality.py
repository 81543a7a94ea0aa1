"""What a data set is like before any network sees it: how many images of each class, and which are there twice."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from vgg_ddp.analysis import duplicates
from vgg_ddp.analysis.budget import spread
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.decoding import TURNS
from vgg_ddp.data.exif import jpeg_exif, segments
from vgg_ddp.data.splits import EncodedSplit, RawSplit, Split

MOST_PIXELS = 60_000_000  # cost limit of a split (see `_price`): 58,000 images of 32 x 32, some seconds on one core
MOST_PAIRS = 24  # to name
PROBES = 200  # files of a split that are read to estimate what its images cost
JPEG, PROGRESSIVE = b"\xff\xd8", 0xC2  # how a file begins, and a marker in it
# Bytes of a JPEG file that are read in the time of one pixel; all are read, whatever the decoded size. Measured with
# shrinking included, on files of 64 to 2,560 pixels a side, of quality 75 to 95; progressive ones go over all pixels
# several times.
BYTES_A_PIXEL, PROGRESSIVE_BYTES_A_PIXEL = 4, 1


def describe(dataset: Dataset, most_pixels: int = MOST_PIXELS, go_on: duplicates.GoOn = tuple) -> dict[str, Any]:
    """Images of each class in each split, and the near-duplicates of test images.

    Args:
        most_pixels: cost limit of the search, for each split; see `affordable`.
        go_on: called now and then, to show that the search goes on.

    Returns: `class_counts` by split, `notes` on unusual images, `nearest_neighbour` (see `_nearest_neighbour`), and
    `near_duplicates` with, for "train" and "test", the images `looked_at` of how many (`of`), the number of `test_images` that
    have a near-duplicate there and `sample_index`, which they are, how many of those have it under `other_labels`, and the
    most alike `pairs` (test image, other image, correlation).
    """
    test, train = dataset.split("test"), dataset.split("train")
    looked_at = affordable(test, train, most_pixels)
    grey = {
        name: duplicates.grey(_brightness(split, int(sample)) for sample in looked_at[name])
        for name, split in (("test", test), ("train", train))
    }
    neighbours = duplicates.nearest(grey["test"], grey["train"], go_on=go_on)
    across = duplicates.find(grey["test"], grey["train"], neighbours, go_on)
    within = duplicates.find_within(grey["test"], go_on)
    return {
        "class_counts": {name: split.class_counts for name, split in dataset.record.splits.items()},
        "notes": dataset.record.notes,
        "nearest_neighbour": _nearest_neighbour(neighbours, looked_at, test, train),
        "near_duplicates": {
            "train": _describe(across, looked_at, (test, train), "train"),
            "test": _describe([*within, *((j, i, c) for i, j, c in within)], looked_at, (test, test), "test"),
        },
    }


def _nearest_neighbour(
    neighbours: duplicates.Neighbours, looked_at: dict[str, NDArray[np.int64]], test: Split, train: Split
) -> dict[str, Any]:
    """How often the most similar training image has the test image's label: a baseline without a network.

    Returns: `correct` of `images` test images, among `training_images`.
    """
    label = test.labels[looked_at["test"]]
    answer = train.labels[looked_at["train"][neighbours.others[:, 0]]] if neighbours.others.size else np.empty(0)
    return {
        "correct": int((answer == label[: len(answer)]).sum()),
        "images": len(label),
        "training_images": len(looked_at["train"]),
    }


def accuracy_by_doubles(
    found: dict[str, Any], right: NDArray[np.bool_], sample_index: NDArray[np.int64]
) -> dict[str, Any]:
    """The accuracy on test images with a near-duplicate in training, and on those without, of those that were looked at.

    Args:
        found: what `describe` says of `near_duplicates`.
        right: whether each image of `sample_index` was named correctly, [n].
    """
    twice = np.isin(sample_index, found["train"]["sample_index"])
    known = np.isin(sample_index, spread(found["test"]["of"], found["test"]["looked_at"]))
    return {
        name: {"images": int(which.sum()), "correct": int(right[which].sum())}
        for name, which in (("with", twice), ("without", known & ~twice))
    }


def affordable(test: Split, train: Split, most_pixels: int = MOST_PIXELS) -> dict[str, NDArray[np.int64]]:
    """The samples of "test" and "train" that are looked at: all, or as many, evenly spread, as cost `most_pixels` a split.

    What one split does not spend goes to the other. A pair is found only if both its images are looked at; that is most likely
    if each split spends half of the total.
    """
    costs = [_cost(test), _cost(train)]
    left = [max(0.0, most_pixels - cost) for cost in costs]
    looked_at = {}
    for name, split, cost, of_other in zip(("test", "train"), (test, train), costs, reversed(left)):
        count = int(len(split) * (most_pixels + of_other) / max(cost, 1.0))
        looked_at[name] = spread(len(split), max(1, count))
    return looked_at


def _cost(split: Split) -> float:
    """The cost of looking at a whole split, in pixels: all its images' pixels, times the share charged for a sample of them."""
    pixels = np.maximum(split.shapes(np.arange(len(split))).prod(axis=1), duplicates.SIDE**2)
    if isinstance(split, RawSplit):
        return float(pixels.sum())
    probes = spread(len(split), PROBES)
    prices = [_price(split.encoded(int(sample)).tobytes(), int(pixels[sample])) for sample in probes]
    return float(pixels.sum() * sum(prices) / max(pixels[probes].sum(), 1))


def _price(file: bytes, pixels: int) -> float:
    """The cost of looking at an image file with this many pixels, in pixels of an image that is decoded whole.

    For a JPEG file, the pixels of the reduced size that `_brightness` decodes, and its bytes.
    """
    side = duplicates.SIDE
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(file, min_height=side, min_width=side)
    except ValueError:  # another format
        return pixels
    progressive = any(marker == PROGRESSIVE for marker, _, _ in segments(file))
    entropy = len(file) / (PROGRESSIVE_BYTES_A_PIXEL if progressive else BYTES_A_PIXEL)
    return min(pixels, max(height * width, side**2) + entropy)


def _brightness(split: Split, sample: int) -> NDArray[np.uint8]:
    """A sample's pixels: of a JPEG file the grey ones alone, at a reduced size if it is large, which is much quicker."""
    if isinstance(split, EncodedSplit):
        data = split.encoded(sample).tobytes()
        if data.startswith(JPEG):
            side = duplicates.SIDE
            with contextlib.suppress(ValueError):  # an unusual file is left to `decode`
                grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=side, min_width=side)[..., 0]
                exif = jpeg_exif(data)
                turn = TURNS.get(exif.orientation) if exif else None
                return grey if turn is None else np.asarray(Image.fromarray(grey).transpose(turn))
    return split.decode(sample)


def _describe(
    pairs: list[duplicates.Pair], looked_at: dict[str, NDArray[np.int64]], splits: tuple[Split, Split], other: str
) -> dict[str, Any]:
    named = [(int(looked_at["test"][i]), int(looked_at[other][j]), c) for i, j, c in pairs]
    contradicting = [pair for pair in named if splits[0].labels[pair[0]] != splits[1].labels[pair[1]]]
    shown = [pair for pair in named if other == "train" or pair[0] < pair[1]]
    shown = sorted(
        shown, key=lambda pair: splits[0].labels[pair[0]] == splits[1].labels[pair[1]]
    )  # contradictions first
    return {
        "looked_at": len(looked_at[other]),
        "of": len(splits[1]),
        "test_images": len({i for i, _, _ in named}),
        "sample_index": sorted({i for i, _, _ in named}),
        "other_labels": len({i for i, _, _ in contradicting}),
        "pairs": [(i, j, round(c, 4)) for i, j, c in shown[:MOST_PAIRS]],
    }
