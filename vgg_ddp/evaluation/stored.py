"""RUN/evaluation: written by rank 0, read by the report and the trackers."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json


@dataclass(frozen=True)
class StoredEvaluation:
    """RUN/evaluation: one prediction per image, sorted by `sample_index`, so that the world size changes nothing.

    Attributes:
        summary: see `vgg_ddp.analysis.summary.describe`.
        label, prediction: classes, int64[images].
        probabilities: float32[images, classes].
        sample_index: indices into the split, int64[images].
        causes: pictures, maps and places of `vgg_ddp.evaluation.why`, by name; empty where nothing was looked for.
    """

    summary: dict[str, Any]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    sample_index: NDArray[np.int64]
    causes: dict[str, NDArray[Any]]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted class, [images]."""
        return self.probabilities[np.arange(len(self.label)), self.prediction].astype(np.float64)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the prediction is the label, [images]."""
        return self.prediction == self.label

    def position(self, sample: int) -> int:
        """Where in the arrays the image with index `sample` is."""
        return int(np.searchsorted(self.sample_index, sample))


def write_evaluation(
    run: RunDirectory, summary: dict[str, Any], predictions: Predictions, causes: dict[str, Any]
) -> None:
    """Write RUN/evaluation: summary.json, the predictions that it was computed from, and the arrays of `Search`.

    The report and the summary of an earlier evaluation are removed first, and the summary is written last: where it stands, the
    arrays beside it are its own.
    """
    arrays, searched = io.BytesIO(), io.BytesIO()
    np.savez_compressed(searched, **causes)
    np.savez(
        arrays,
        label=predictions.label,
        prediction=predictions.prediction,
        probabilities=predictions.probabilities,
        sample_index=predictions.sample_index,
    )
    with run.writing():
        with contextlib.suppress(NotADirectoryError):  # then there is none
            run.report.unlink(missing_ok=True)
        (run.evaluation / "summary.json").unlink(missing_ok=True)
    run.write_bytes(run.evaluation / "predictions.npz", arrays.getvalue())
    run.write_bytes(run.evaluation / "why.npz", searched.getvalue())
    run.write_json(run.evaluation / "summary.json", summary)


def read_evaluation(run: Path) -> StoredEvaluation:
    """The evaluation of `run`.

    Raises:
        UserError: there is none, or it is damaged or of an earlier version.
    """
    folder = run / "evaluation"
    again = f"run: vgg-ddp evaluate {run}"
    summary = read_json(folder / "summary.json", again)
    if summary is None:
        raise UserError(f"{run} has no evaluation yet; {again}")
    if "why" not in summary:
        raise UserError(f"{run} was evaluated by an earlier version; {again}")
    stored = _arrays(folder / "predictions.npz", again)
    try:
        arrays = {name: stored[name] for name in ("label", "prediction", "probabilities", "sample_index")}
    except KeyError as error:
        raise UserError(f"{folder / 'predictions.npz'} is damaged ({error}); {again}") from None
    order = np.argsort(arrays["sample_index"], kind="stable")
    causes = _arrays(folder / "why.npz", again)
    return StoredEvaluation(summary, **{name: array[order] for name, array in arrays.items()}, causes=causes)


def _arrays(path: Path, again: str) -> dict[str, NDArray[Any]]:
    try:
        # numpy leaves a file that it opened itself open where it turns out damaged
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored)
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; {again}") from None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); {again}") from None
