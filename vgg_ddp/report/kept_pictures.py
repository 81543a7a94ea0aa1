"""The pictures of a report: drawn from the data set, and kept in evaluation/pictures.json for when it is gone.

About as many bytes as in the page: at most 6 MB of thumbnails (`thumbnails.MOST_BYTES`, in base64), and some hundreds
of single pictures, most of at most 64 pixels, the others of at most 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.confusions import most_confused_pairs
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.splits import Split
from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.run.files import replace_file

MOST_IMAGES = 10_000  # that a page carries
MOST_PIXELS = 200_000_000  # to decode for them: 4,000 images of 224 x 224, some ten seconds on one core
QUIZ_PAIRS = 6
QUIZ_IMAGES = 30  # of each class, to draw questions from
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
        even, asked: of those samples, those of `Carried`.
    """

    checkpoint_sha256: str
    index: list[int]
    names: list[str]
    side: int
    sheets: list[str]
    single: dict[str, Picture] = {}
    even: list[int] = []
    asked: list[int] = []


class Pictures:
    """The pictures of an evaluation: those that are kept and, given `dataset`, any other, which is then kept too."""

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
    chosen = carried(evaluation, split)
    samples, even, asked = (evaluation.sample_index[k] for k in (chosen.positions, chosen.even, chosen.asked))
    side = thumbnails.side_of(len(samples), int(split.shapes(samples).min(axis=1).max()))
    squares = [thumbnails.square(split.decode(int(sample)), side) for sample in samples]
    names = [words.shortened(split.key(int(sample))) for sample in samples]
    sheets = thumbnails.sheets(squares, side)
    kept = Kept(
        _checkpoint(evaluation.summary), samples.tolist(), names, side, sheets, {}, even.tolist(), asked.tolist()
    )
    return Pictures(kept, dataset)


def of_run(evaluation: Evaluation, folder: Path) -> Pictures | None:
    """Those that an evaluation's folder keeps; None where it has none, or of another evaluation."""
    try:
        kept = msgspec.json.decode((folder / FILE).read_bytes(), type=Kept)
    except (OSError, ValueError):
        return None
    of_this = kept.checkpoint_sha256 == _checkpoint(evaluation.summary) and np.isin(kept.index, evaluation.sample_index)
    return Pictures(kept, None) if np.all(of_this) else None


@dataclass(frozen=True)
class Carried:
    """Positions of the images that a page carries, and of some of them: all rising.

    Attributes:
        positions: all of them.
        even: chosen evenly and whatever was answered, so that among them mistakes are as frequent as among all.
        asked: of the classes that the quiz is about, whatever was answered.
    """

    positions: NDArray[np.int64]
    even: NDArray[np.int64]
    asked: NDArray[np.int64]


def carried(evaluation: Evaluation, split: Split | None) -> Carried:
    """All images; or half of them evenly chosen, those for the quiz, then mistakes, then right answers."""
    count, most = len(evaluation.label), MOST_IMAGES
    if split is not None:
        pixels = float(split.shapes(evaluation.sample_index).prod(axis=1).mean())
        most = max(1, min(most, int(MOST_PIXELS / pixels)))
    if count <= most:
        return _all(evaluation)
    even, asked = spread(count, max(1, most // 2)), _asked(evaluation, max(1, most // 48))
    chosen = np.union1d(even, asked)
    others = np.setdiff1d(np.arange(count), chosen)
    is_right = evaluation.prediction[others] == evaluation.label[others]
    for left in (others[~is_right], others[is_right]):
        chosen = np.union1d(chosen, left[spread(len(left), max(0, most - len(chosen)))])
    return Carried(chosen, even, asked)


def of_kept(evaluation: Evaluation, kept: Kept) -> Carried:
    """The positions of a run's kept pictures. With many images, earlier versions kept neither `even` nor `asked`."""
    if len(kept.index) == len(evaluation.label):
        return _all(evaluation)
    return Carried(*(np.searchsorted(evaluation.sample_index, found) for found in (kept.index, kept.even, kept.asked)))


def _all(evaluation: Evaluation) -> Carried:
    positions = np.arange(len(evaluation.label))
    return Carried(positions, positions, _asked(evaluation, QUIZ_IMAGES))


def _asked(evaluation: Evaluation, most: int) -> NDArray[np.int64]:
    """At most `most`, and `QUIZ_IMAGES`, of each class of the most confused pairs, drawn at random."""
    random = np.random.default_rng(0)
    classes = sorted({k for pair in most_confused_pairs(evaluation.confusion, QUIZ_PAIRS) for k in pair})
    drawn = [random.permutation(np.flatnonzero(evaluation.label == k))[: min(most, QUIZ_IMAGES)] for k in classes]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *drawn]))


def _checkpoint(summary: dict[str, Any]) -> str:
    return str(summary.get("checkpoint_sha256"))
