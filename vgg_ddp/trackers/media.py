"""What a tracker shows of an evaluation: figures, tables and pictures."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.labels import surest_mistakes
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.evaluation.stored import StoredEvaluation

MOST_PREDICTIONS = 200  # with their picture in a table
MOST_POINTS = 1000  # in a projection
POINT_SIDE = 32  # pixels of their pictures
NARROWEST = 192  # pixels of a picture with its caption below
PREDICTIONS = ("image", "index", "label", "prediction", "confidence", "right")
PER_CLASS = ("name", "images", "correct", "accuracy", "precision", "recall", "f1")
RELIABILITY = ("confidence from", "to", "images", "mean confidence", "accuracy")


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its pixels [height, width, 3], and its label and prediction in words."""

    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class Media:
    """What can be shown of RUN/evaluation, whose images are in `dataset`, and of the page `report`."""

    evaluation: StoredEvaluation
    dataset: Dataset
    report: Path

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return list(self.evaluation.summary["classes"])

    @property
    def split(self) -> str:
        """The name of the split."""
        return str(self.evaluation.summary["split"])

    @property
    def scalars(self) -> dict[str, float]:
        """`test/accuracy` and similar figures, those that are known."""
        summary = self.evaluation.summary
        values = {key: summary.get(key) for key in ("accuracy", "top5_accuracy", "loss")}
        values["calibration_error"] = summary["calibration"]["expected_calibration_error"]
        return {f"{self.split}/{name}": float(value) for name, value in values.items() if value is not None}

    @property
    def warnings(self) -> list[str]:
        """What makes its figures moot, a sentence each."""
        return list(self.evaluation.summary["warnings"])

    @property
    def per_class(self) -> list[list[Any]]:
        """Rows of the columns `PER_CLASS`."""
        return [[row[column] for column in PER_CLASS] for row in self.evaluation.summary["per_class"]]

    @property
    def reliability(self) -> list[list[float]]:
        """Rows of the columns `RELIABILITY`, a bin that holds images each."""
        bins = [row for row in self.evaluation.summary["calibration"]["bins"] if row["images"]]
        return [[row[key] for key in ("low", "high", "images", "confidence", "accuracy")] for row in bins]

    def mistakes(self, count: int) -> list[Mistake]:
        """The `count` mistakes of which the network was most certain."""
        stored, images = self.evaluation, self.dataset.split(self.split)
        names, confidence = self.classes, stored.confidence
        return [
            Mistake(
                images.decode(int(stored.sample_index[i])),
                f"{names[stored.label[i]]} taken for {names[stored.prediction[i]]}, {confidence[i]:.0%}",
            )
            for i in surest_mistakes(stored.label, stored.prediction, confidence)[:count]
        ]

    def spread(self, count: int) -> NDArray[np.int64]:
        """Positions of at most `count` of the images, evenly spread."""
        return spread(len(self.evaluation.label), count)

    def predictions(self) -> list[list[Any]]:
        """Rows of the columns `PREDICTIONS`, at most `MOST_PREDICTIONS`; the images as their pixels [height, width, 3]."""
        stored, images, names = self.evaluation, self.dataset.split(self.split), self.classes
        return [
            [
                images.decode(int(stored.sample_index[i])),
                int(stored.sample_index[i]),
                names[stored.label[i]],
                names[stored.prediction[i]],
                float(stored.confidence[i]),
                bool(stored.right[i]),
            ]
            for i in self.spread(MOST_PREDICTIONS)
        ]


def captioned(mistake: Mistake) -> NDArray[np.uint8]:
    """A mistake with its caption below, for a tracker whose pictures have none."""
    picture = Image.fromarray(mistake.pixels)
    if picture.width < NARROWEST:
        factor = NARROWEST / picture.width
        picture = picture.resize((NARROWEST, round(picture.height * factor)), Image.Resampling.NEAREST)
    lines = textwrap.wrap(mistake.caption, picture.width // 6)
    page = Image.new("RGB", (picture.width, picture.height + 14 * len(lines) + 4), "white")
    page.paste(picture)
    ImageDraw.Draw(page).multiline_text((2, picture.height + 1), "\n".join(lines), "black")
    return np.asarray(page)


def draw_confusion(media: Media) -> NDArray[np.uint8]:
    """The confusion matrix as a picture: each row, a true class, in shares of its images."""
    counts = np.array(media.evaluation.summary["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    if len(media.classes) <= 30:
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in media.classes]
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    return _pixels(figure)


def draw_reliability(media: Media) -> NDArray[np.uint8]:
    """The reliability diagram as a picture."""
    rows = np.array(media.reliability)
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.bar(rows[:, 0], rows[:, 4], width=rows[:, 1] - rows[:, 0], align="edge", edgecolor="white", color="#0072b2")
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", label="perfectly calibrated")
    axes.legend()
    return _pixels(figure)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
