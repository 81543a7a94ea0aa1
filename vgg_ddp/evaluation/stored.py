"""Reads RUN/evaluation, for the report and the trackers."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.errors import UserError
from vgg_ddp.run.files import read_json


@dataclass(frozen=True)
class StoredEvaluation:
    """RUN/evaluation: one prediction per image, sorted by `sample_index`, so that the world size changes nothing.

    Attributes:
        summary: see `vgg_ddp.analysis.summary.describe`.
        label, prediction: classes, int64[images].
        probabilities: float32[images, classes].
        sample_index: indices into the split, int64[images].
    """

    summary: dict[str, Any]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    sample_index: NDArray[np.int64]

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
    if "abstention" not in summary:
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
    return StoredEvaluation(summary, **{name: array[order] for name, array in arrays.items()})
