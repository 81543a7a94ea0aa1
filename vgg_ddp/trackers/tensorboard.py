"""TensorBoard: event files in RUN/tensorboard; look at them with `tensorboard --logdir RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vgg_ddp.config import Config, dump
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.trackers import Assignment, Outcome, Say
from vgg_ddp.trackers.media import (
    MOST_POINTS,
    PER_CLASS,
    POINT_SIDE,
    Media,
    captioned,
    draw_confusion,
    draw_reliability,
)


class TensorBoardTracker:
    """A `vgg_ddp.trackers.Tracker` that writes event files."""

    def __init__(self, folder: Path, config: Config, mistakes: int) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._config, self._mistakes = config, mistakes
        self._writer.add_text("config", "".join(f"    {line}\n" for line in dump(config).splitlines()), 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write `values` as scalars at `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def evaluated(self, step: int, media: Media) -> None:
        """Write the figures, the table and the pictures of an evaluation."""
        self.log(step, media.scalars)
        rows = [PER_CLASS, ["---"] * len(PER_CLASS), *media.per_class]
        table = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
        self._writer.add_text(f"{media.split}/per_class", table, step)
        self._writer.add_image(f"{media.split}/confusion_matrix", draw_confusion(media), step, dataformats="HWC")
        self._writer.add_image(f"{media.split}/reliability_diagram", draw_reliability(media), step, dataformats="HWC")
        for number, mistake in enumerate(media.mistakes(self._mistakes), start=1):
            self._writer.add_image(f"{media.split}_mistakes/{number:03d}", captioned(mistake), step, dataformats="HWC")
        if media.warnings:
            self._writer.add_text("before_any_figure", "\n\n".join(map(_cell, media.warnings)), step)
        self._add_projection(step, media)
        self._add_hyperparameters(media.scalars)

    def _add_projection(self, step: int, media: Media) -> None:
        """Some images as points, by their probabilities, for TensorBoard's projector."""
        stored, images, names = media.evaluation, media.dataset.split(media.split), media.classes
        chosen = media.spread(MOST_POINTS)
        pictures = [
            Image.fromarray(images.decode(int(k))).resize((POINT_SIDE, POINT_SIDE)) for k in stored.sample_index[chosen]
        ]
        self._writer.add_embedding(
            torch.from_numpy(np.nan_to_num(stored.probabilities[chosen])),
            metadata=[[_cell(names[stored.label[k]]), _cell(names[stored.prediction[k]])] for k in chosen],
            metadata_header=["label", "prediction"],
            label_img=torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
            / 255,
            global_step=step,
            tag=f"{media.split}_probabilities",
        )

    def _add_hyperparameters(self, metrics: dict[str, float]) -> None:
        """The keys of the configuration beside what came of them, for TensorBoard's table of runs."""
        keys = _flat(msgspec.to_builtins(self._config))
        for summary in hparams(keys, metrics):
            self._writer._get_file_writer().add_summary(summary)

    def warned(self, words: str) -> None:
        """Write it as text."""
        self._writer.add_text("warning", _cell(words))

    def failed(self, state: str, words: str) -> None:
        """Write what happened as text."""
        self._writer.add_text("outcome", f"**{state}.** {_cell(words)}")

    def finish(self, outcome: Outcome, totals: dict[str, Any]) -> None:
        """Write the numbers among the totals as scalars at the last step."""
        for name, value in totals.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"totals/{name}", value, totals["steps"])
        self._writer.close()


def _flat(settings: dict[str, Any], group: str = "") -> dict[str, bool | float | str]:
    """Every key with its path, its value in a form that TensorBoard has."""
    found: dict[str, bool | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{group}{name}.")
        else:
            found[f"{group}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def start(assignment: Assignment, config: Config, dataset: Dataset, first_step: int, say: Say) -> TensorBoardTracker:
    """A tracker that writes to RUN/tensorboard, the configuration first."""
    return TensorBoardTracker(Path(assignment.run) / "tensorboard", config, assignment.tracking.mistakes)
