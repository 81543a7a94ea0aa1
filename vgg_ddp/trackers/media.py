"""What a tracker shows of an evaluation: figures, tables and pictures, read from the run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vgg_ddp.data.dataset import Dataset

PER_CLASS = ("name", "images", "correct", "accuracy", "precision", "recall", "f1")
RELIABILITY = ("confidence from", "to", "images", "mean confidence", "accuracy")


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its pixels, height x width x 3, and what it is and was taken for."""

    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class Evaluation:
    """RUN/evaluation, RUN/report and the images of the test split."""

    summary: dict[str, Any]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    confidence: NDArray[np.float64]  # probability of the predicted class
    sample_index: NDArray[np.int64]
    dataset: Dataset
    report: Path

    @property
    def classes(self) -> list[str]:
        return list(self.summary["classes"])

    @property
    def scalars(self) -> dict[str, float]:
        """`test/accuracy` and the like, those that there are."""
        split = self.summary["split"]
        found = {f"{split}/{key}": self.summary.get(key) for key in ("accuracy", "top5_accuracy", "loss")}
        found[f"{split}/calibration_error"] = self.calibration_error
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def per_class(self) -> list[list[Any]]:
        """Rows of the columns `PER_CLASS`."""
        return [[row[column] for column in PER_CLASS] for row in self.summary["per_class"]]

    @cached_property
    def reliability(self) -> list[list[float]]:
        """Rows of the columns `RELIABILITY`: the summary's, or counted here where it has none."""
        if "calibration" in self.summary:
            bins = [b for b in self.summary["calibration"]["bins"] if b["images"]]
            return [[b[key] for key in ("low", "high", "images", "confidence", "accuracy")] for b in bins]
        return reliability_bins(self.confidence, self.prediction == self.label)

    @property
    def calibration_error(self) -> float:
        """The summary's expected calibration error, or that of the bins counted here."""
        if "calibration" in self.summary:
            return float(self.summary["calibration"]["expected_calibration_error"])
        return expected_calibration_error(self.reliability)

    def mistakes(self, count: int) -> list[Mistake]:
        """The `count` mistakes of which the network was most certain."""
        wrong = np.flatnonzero(self.prediction != self.label)
        worst = wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]
        images = self.dataset.split(self.summary["split"])
        return [
            Mistake(
                images.decode(int(self.sample_index[i])),
                f"{self.classes[self.label[i]]} taken for {self.classes[self.prediction[i]]}, {self.confidence[i]:.0%}",
            )
            for i in worst
        ]


def read_evaluation(run: Path, dataset: Dataset) -> Evaluation:
    """The evaluation of `run`; whatever reading a missing or damaged file raises."""
    folder = run / "evaluation"
    with np.load(folder / "predictions.npz") as arrays:
        prediction = arrays["prediction"]
        confidence = arrays["probabilities"][np.arange(len(prediction)), prediction].astype(np.float64)
        return Evaluation(
            json.loads((folder / "summary.json").read_text()),
            arrays["label"],
            prediction,
            confidence,
            arrays["sample_index"],
            dataset,
            run / "report" / "index.html",
        )


def reliability_bins(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 15) -> list[list[float]]:
    """Rows (from, to, images, mean confidence, accuracy) of a reliability diagram with bins of one width; empty ones left out.

    Guo et al. 2017, "On calibration of modern neural networks", section 2; a bin holds its upper end, as theirs do.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = []
    for i in np.unique(number):
        inside = number == i
        means = float(confidence[inside].mean()), float(correct[inside].mean())
        rows.append([float(edges[i]), float(edges[i + 1]), int(inside.sum()), *means])
    return rows


def expected_calibration_error(reliability: list[list[float]]) -> float:
    """The mean distance of accuracy from confidence over all images (Guo et al. 2017, equation 3)."""
    images = sum(row[2] for row in reliability)
    return sum(row[2] * abs(row[4] - row[3]) for row in reliability) / images


def draw_confusion(evaluation: Evaluation) -> NDArray[np.uint8]:
    """The confusion matrix as a picture: each row, a true class, in shares of its images."""
    counts = np.array(evaluation.summary["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    if len(evaluation.classes) <= 30:
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in evaluation.classes]
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    return _pixels(figure)


def draw_reliability(evaluation: Evaluation) -> NDArray[np.uint8]:
    """The reliability diagram as a picture."""
    rows = np.array(evaluation.reliability)
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.bar(rows[:, 0], rows[:, 4], width=rows[:, 1] - rows[:, 0], align="edge", edgecolor="white", color="#0072b2")
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", label="as certain as right")
    axes.legend()
    return _pixels(figure)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
