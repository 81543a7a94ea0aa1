"""Reads what a run left behind: its evaluation, its metrics, and its JSON files."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_ddp.analysis.confusions import Counts
from vgg_ddp.errors import UserError
from vgg_ddp.report import words


@dataclass(frozen=True)
class Evaluation:
    """RUN/evaluation: one prediction per image, sorted by `sample_index`, so that no world size changes the page."""

    summary: dict[str, Any]
    classes: list[str]
    confusion: Counts  # [true class, predicted class]
    groups: dict[str, dict[str, Any]]  # as analysis.groups.describe gives them
    label: npt.NDArray[np.int64]  # [images]
    prediction: npt.NDArray[np.int64]  # [images]
    probabilities: npt.NDArray[np.float32]  # [images, classes]
    sample_index: npt.NDArray[np.int64]  # [images]

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """Probability of the predicted class, [images]."""
        return self.probabilities[np.arange(len(self.label)), self.prediction].astype(np.float64)

    def position(self, sample: int) -> int:
        """Where in the arrays the image with this index is."""
        return int(np.searchsorted(self.sample_index, sample))

    @property
    def network(self) -> str:
        return words.shown(self.summary["network"])

    @property
    def dataset(self) -> str:
        return words.shown(self.summary["dataset"])

    @property
    def split(self) -> str:
        return words.shown(self.summary["split"])


def read_evaluation(run: Path) -> Evaluation:
    """The evaluation of `run`.

    Raises:
        UserError: there is none, or one of its files is missing or damaged.
    """
    folder = run / "evaluation"
    again = f"run: vgg-ddp evaluate {run}"
    summary = read_json(folder / "summary.json", again)
    if summary is None:
        raise UserError(f"{run} has no evaluation yet; {again}")
    if "calibration" not in summary:
        raise UserError(f"{run} was evaluated by an earlier version; {again}")
    try:
        # numpy leaves a file that it opened itself open where it turns out damaged
        with (folder / "predictions.npz").open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in ("label", "prediction", "probabilities", "sample_index")}
    except FileNotFoundError:
        raise UserError(f"{folder} has no predictions.npz; {again}") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / 'predictions.npz'} is damaged ({error}); {again}") from None
    order = np.argsort(arrays["sample_index"], kind="stable")
    label, prediction = arrays["label"][order], arrays["prediction"][order]
    return Evaluation(
        summary=summary,
        classes=[words.shown(name) for name in summary["classes"]],
        confusion=np.array(summary["confusion"], dtype=np.int64),
        groups={words.shown(name): _shown_group(group) for name, group in summary["groups"].items()},
        label=label,
        prediction=prediction,
        probabilities=arrays["probabilities"][order],
        sample_index=arrays["sample_index"][order],
    )


def _shown_group(group: dict[str, Any]) -> dict[str, Any]:
    taken_for = {words.shown(name): images for name, images in group["taken_for"].items()}
    return {**group, "classes": [words.shown(name) for name in group["classes"]], "taken_for": taken_for}


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of metrics.jsonl in the order of their steps, and how many lines a killed run left cut off.

    A resumed run writes again the steps after its checkpoint: the later row counts.
    """
    if not path.exists():
        return [], 0
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[row["split"], row["scope"], row["step"]] = row
        except ValueError:
            unreadable += 1
    return sorted(rows.values(), key=lambda row: row["step"]), unreadable


def read_json(path: Path, remedy: str = "remove it and write the report again") -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file.

    Raises:
        UserError: the file is damaged; `remedy` says what to do.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None
