"""Grids of pictures of the evaluated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.confusions import worst_class
from vgg_ddp.data.splits import Split
from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.reading import Evaluation

TILES = 9  # pictures in each grid


@dataclass(frozen=True)
class Tile:
    """One picture of a grid; `source` is None where the picture cannot be had."""

    source: str | None
    pixelated: bool
    index: int
    name: str
    true: str
    predicted: str
    confidence: str
    right: bool


def values(evaluation: Evaluation, split: Split | None) -> dict[str, Any]:
    """Three grids of pictures: drawn at random, the surest mistakes, and misses of the worst class."""
    wrong = np.flatnonzero(~evaluation.right)
    worst = worst_class(evaluation.confusion)
    surest = evaluation.summary["surest_mistakes"][:TILES]
    grids: dict[str, list[int]] = {
        "samples": _draw(np.arange(len(evaluation.label))),
        "mistakes": [evaluation.position(sample) for sample in surest],
        "worst_tiles": _draw(wrong[evaluation.label[wrong] == worst]),
    }
    return {
        "have_images": split is not None,
        "sureness": words.sureness_sentence(evaluation.confidence, evaluation.right),
        **{name: [tile(evaluation, split, k) for k in grid] for name, grid in grids.items()},
    }


def _draw(positions: NDArray[np.int64]) -> list[int]:
    """At most `TILES` positions at random, the same every time; mistakes appear at their real rate."""
    return np.random.default_rng(0).choice(positions, min(TILES, len(positions)), replace=False).tolist()


def tile(evaluation: Evaluation, split: Split | None, k: int) -> Tile:
    """The picture at position `k` of the evaluation."""
    label, prediction, sample = (int(a[k]) for a in (evaluation.label, evaluation.prediction, evaluation.sample_index))
    pixels = None if split is None else split.decode(sample)
    return Tile(
        source=None if pixels is None else thumbnails.png(pixels),
        pixelated=pixels is not None and thumbnails.pixelated(pixels),
        index=sample,
        name=f"image {sample}" if split is None else words.shortened(split.key(sample)),
        true=evaluation.classes[label],
        predicted=evaluation.classes[prediction],
        confidence=words.percent(float(evaluation.confidence[k]), 0),
        right=label == prediction,
    )
