"""TensorBoard: event files in RUN/tensorboard; look at them with `tensorboard --logdir RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vgg_ddp.config import Config, dump
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.trackers import Assignment, Outcome, Say
from vgg_ddp.trackers.media import PER_CLASS, Media, draw_confusion, draw_reliability


class TensorBoardTracker:
    """A `vgg_ddp.trackers.Tracker` that writes event files."""

    def __init__(self, folder: Path, config: Config, mistakes: int) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._mistakes = mistakes
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
            self._writer.add_image(f"{media.split}_mistakes/{number:03d}", mistake.pixels, step, dataformats="HWC")
            self._writer.add_text(f"{media.split}_mistakes/{number:03d}", _cell(mistake.caption), step)

    def finish(self, outcome: Outcome, totals: dict[str, Any]) -> None:
        """Write the numbers among the totals as scalars at the last step."""
        for name, value in totals.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"totals/{name}", value, totals["steps"])
        self._writer.close()


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def start(assignment: Assignment, config: Config, dataset: Dataset, first_step: int, say: Say) -> TensorBoardTracker:
    """A tracker that writes to RUN/tensorboard, the configuration first."""
    return TensorBoardTracker(Path(assignment.run) / "tensorboard", config, assignment.tracking.mistakes)
