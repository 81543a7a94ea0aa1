"""The pictures of a report: drawn from the data set, and kept in evaluation/pictures.json for when it is gone.

About as many bytes as in the page: at most 6 MB of thumbnails (`thumbnails.MOST_BYTES`, in base64), and some hundreds
of single pictures, most of at most 64 pixels, the others of at most 256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.budget import spread
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.splits import Split
from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.run.files import replace_file

MOST_IMAGES = 10_000  # that a page carries; of more, half are evenly chosen, then mistakes come first
MOST_PIXELS = 200_000_000  # to decode for them: 4,000 images of 224 x 224, some ten seconds on one core
FILE = "pictures.json"


class Picture(msgspec.Struct, frozen=True):
    """One picture as a page shows it: `source` is a data URL, `label` its class."""

    source: str
    pixelated: bool
    name: str
    label: int


class Kept(msgspec.Struct, frozen=True):
    """What evaluation/pictures.json holds.

    Attributes:
        checkpoint_sha256: of the evaluation that it belongs to.
        index: the samples that have a thumbnail, rising.
        names: of these, as the data set names them.
        side: pixels of a thumbnail.
        sheets: the thumbnails, in base64 (see `thumbnails.sheets`).
        single: pictures by their split and sample.
    """

    checkpoint_sha256: str
    index: list[int]
    names: list[str]
    side: int
    sheets: list[str]
    single: dict[str, Picture] = {}


class Pictures:
    """Of an evaluation: those that are kept, and where `dataset` is there every other one too, which is then kept."""

    def __init__(self, kept: Kept, dataset: Dataset | None) -> None:
        self.kept, self._dataset = kept, dataset

    def single(self, split: str, sample: int, side: int = thumbnails.LARGEST_SINGLE) -> Picture | None:
        """A picture of a split, shrunk to `side` pixels if it is larger; None where it cannot be had."""
        key = f"{split} {sample}" + (f" {side}" if side != thumbnails.LARGEST_SINGLE else "")
        if self._dataset is not None and key not in self.kept.single:
            images = self._dataset.split(split)
            pixels, name = images.decode(sample), words.shortened(images.key(sample))
            source, pixelated = thumbnails.single(pixels, side), thumbnails.pixelated(pixels)
            drawn = Picture(source, pixelated, name, int(images.labels[sample]))
            self.kept.single[key] = drawn
        return self.kept.single.get(key)

    def keep(self, folder: Path) -> None:
        """Write what was shown into an evaluation's folder."""
        replace_file(folder / FILE, msgspec.json.encode(self.kept))


def of_dataset(evaluation: Evaluation, dataset: Dataset) -> Pictures:
    """The pictures of an evaluation, its thumbnails drawn."""
    split = dataset.split(evaluation.summary["split"])
    samples = evaluation.sample_index[carried(evaluation, split)]
    side = thumbnails.side_of(len(samples), int(split.shapes(samples).min(axis=1).max()))
    squares = [thumbnails.square(split.decode(int(sample)), side) for sample in samples]
    names = [words.shortened(split.key(int(sample))) for sample in samples]
    sheets = thumbnails.sheets(squares, side)
    return Pictures(Kept(_checkpoint(evaluation.summary), samples.tolist(), names, side, sheets), dataset)


def of_run(evaluation: Evaluation, folder: Path) -> Pictures | None:
    """Those that an evaluation's folder keeps; None where it has none, or of another evaluation."""
    try:
        kept = msgspec.json.decode((folder / FILE).read_bytes(), type=Kept)
    except (OSError, ValueError):
        return None
    of_this = kept.checkpoint_sha256 == _checkpoint(evaluation.summary) and np.isin(kept.index, evaluation.sample_index)
    return Pictures(kept, None) if np.all(of_this) else None


def carried(evaluation: Evaluation, split: Split | None) -> NDArray[np.int64]:
    """Positions of the images that a page carries: all, or half of them evenly chosen, then mistakes, then right answers."""
    count, most = len(evaluation.label), MOST_IMAGES
    if split is not None:
        pixels = float(split.shapes(evaluation.sample_index).prod(axis=1).mean())
        most = max(1, min(most, int(MOST_PIXELS / pixels)))
    if count <= most:
        return np.arange(count)
    even = _evenly(count, most)
    others = np.setdiff1d(np.arange(count), even)
    is_right = evaluation.prediction[others] == evaluation.label[others]
    wrong, right = others[~is_right], others[is_right]
    wrong = wrong[spread(len(wrong), most - len(even))]
    right = right[spread(len(right), most - len(even) - len(wrong))]
    return np.sort(np.concatenate([even, wrong, right]))


def evenly_chosen(count: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in `positions`, which `carried` has chosen of `count`, of the images that were chosen whatever their answers:
    among these, mistakes are as frequent as among all. None of pictures that were kept before there were such.
    """
    even = np.arange(count) if len(positions) == count else _evenly(count, len(positions))
    places = np.flatnonzero(np.isin(positions, even))
    return places if len(places) == len(even) else places[:0]


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    return spread(count, max(1, most // 2))


def _checkpoint(summary: dict[str, Any]) -> str:
    return str(summary.get("checkpoint_sha256"))
