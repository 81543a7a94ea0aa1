"""Grids of pictures of the evaluated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.report import words
from vgg_ddp.report.kept_pictures import Pictures
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


def values(evaluation: Evaluation, pictures: Pictures | None) -> dict[str, Any]:
    """Three grids of pictures: drawn at random, the surest mistakes, and misses of the worst or most missed class."""
    wrong = np.flatnonzero(~evaluation.right)
    worst = evaluation.looked_at
    surest = evaluation.summary["surest_mistakes"][:TILES]
    grids: dict[str, list[int]] = {
        "samples": _draw(np.arange(len(evaluation.label))),
        "mistakes": [evaluation.position(sample) for sample in surest],
        "worst_tiles": _draw(wrong[evaluation.label[wrong] == worst]),
    }
    return {
        "have_images": pictures is not None,
        "sureness": sureness_sentence(evaluation.confidence, evaluation.right),
        **{name: [tile(evaluation, pictures, k) for k in grid] for name, grid in grids.items()},
    }


def _draw(positions: NDArray[np.int64]) -> list[int]:
    """At most `TILES` positions at random, the same every time; mistakes appear at their real rate."""
    return np.random.default_rng(0).choice(positions, min(TILES, len(positions)), replace=False).tolist()


def tile(evaluation: Evaluation, pictures: Pictures | None, k: int) -> Tile:
    """The picture at position `k` of the evaluation."""
    label, prediction, sample = (int(a[k]) for a in (evaluation.label, evaluation.prediction, evaluation.sample_index))
    picture = None if pictures is None else pictures.single(evaluation.summary["split"], sample)
    return Tile(
        source=None if picture is None else picture.source,
        pixelated=picture is not None and picture.pixelated,
        index=sample,
        name=f"image {sample}" if picture is None else picture.name,
        true=evaluation.classes[label],
        predicted=evaluation.classes[prediction],
        confidence=words.percent(float(evaluation.confidence[k]), 0),
        right=label == prediction,
    )


def sureness_sentence(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> str:
    """Mean confidence [images] of right and of wrong answers; empty where all are right or all wrong."""
    if right.all() or not right.any():
        return ""
    return (
        f"On average the network is {words.percent(float(confidence[right].mean()), 0)} sure of its right answers "
        f"and {words.percent(float(confidence[~right].mean()), 0)} sure of its wrong ones."
    )
