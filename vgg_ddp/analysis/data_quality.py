"""What a data set is like before any network sees it: how many images of each class, and which are there twice."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from vgg_ddp.analysis import duplicates
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.splits import EncodedSplit, Split

MOST_PIXELS = 60_000_000  # to decode of a split: 58,000 images of 32 x 32, some seconds on one core
MOST_PAIRS = 24  # to name


def describe(dataset: Dataset, most_pixels: int = MOST_PIXELS) -> dict[str, Any]:
    """Images of each class in each split, and the near-duplicates of test images.

    Args:
        most_pixels: to decode of each split in search of them.

    Returns: `class_counts` by split, `notes` on unusual images, `nearest_neighbour` (see `_nearest_neighbour`), and
    `near_duplicates` with, for "train" and "test", the images `looked_at` of how many (`of`), the number of `test_images` that
    have a near-duplicate there and `sample_index`, which they are, how many of those have it under `other_labels`, and the
    most alike `pairs` (test image, other image, correlation).
    """
    test, train = dataset.split("test"), dataset.split("train")
    looked_at = {"test": affordable(test, most_pixels), "train": affordable(train, most_pixels)}
    grey = {
        name: duplicates.grey(_brightness(split, int(sample)) for sample in looked_at[name])
        for name, split in (("test", test), ("train", train))
    }
    neighbours = duplicates.nearest(grey["test"], grey["train"])
    across, within = duplicates.find(grey["test"], grey["train"], neighbours), duplicates.find_within(grey["test"])
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
    """How often the training image that is most alike has the label: what needs no network at all.

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
    """The accuracy on test images with a near-duplicate in training, and on those without.

    Args:
        found: what `describe` says of near-duplicates in the training images.
        right: whether each image of `sample_index` was named correctly, [n].
    """
    twice = np.isin(sample_index, found["sample_index"])
    return {
        name: {"images": int(which.sum()), "correct": int(right[which].sum())}
        for name, which in (("with", twice), ("without", ~twice))
    }


def affordable(split: Split, most_pixels: int = MOST_PIXELS) -> NDArray[np.int64]:
    """The samples of a split that are looked at: all, or as many, evenly spread, as have `most_pixels`."""
    samples = np.arange(len(split))
    pixels = int(split.shapes(samples).prod(axis=1).sum())
    if pixels <= most_pixels:
        return samples
    return np.linspace(0, len(split) - 1, max(1, len(split) * most_pixels // pixels)).astype(np.int64)


def _brightness(split: Split, sample: int) -> NDArray[np.uint8]:
    """A sample's pixels: of a JPEG file the grey ones alone, at a reduced size if it is large, which is much quicker."""
    if isinstance(split, EncodedSplit):
        data = split.encoded(sample).tobytes()
        if data.startswith(b"\xff\xd8"):
            side = duplicates.SIDE
            with contextlib.suppress(ValueError):  # an unusual file is left to `decode`
                return simplejpeg.decode_jpeg(data, "GRAY", min_height=side, min_width=side)[..., 0]
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
