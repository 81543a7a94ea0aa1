"""TensorBoard: event files in RUN/tensorboard; look at them with `tensorboard --logdir RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vgg_ddp.config import Config, dump
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.trackers import Assignment, Outcome, Say
from vgg_ddp.trackers.media import PER_CLASS, Evaluation, draw_confusion, draw_reliability


class TensorBoardTracker:
    """See `vgg_ddp.trackers.Tracker`."""

    def __init__(self, folder: Path, config: Config, mistakes: int) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._mistakes = mistakes
        self._writer.add_text("config", "".join(f"    {line}\n" for line in dump(config).splitlines()), 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        self.log(step, evaluation.scalars)
        split = evaluation.summary["split"]
        rows = [PER_CLASS, ["---"] * len(PER_CLASS), *evaluation.per_class]
        table = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
        self._writer.add_text(f"{split}/per_class", table, step)
        self._writer.add_image(f"{split}/confusion_matrix", draw_confusion(evaluation), step, dataformats="HWC")
        self._writer.add_image(f"{split}/reliability_diagram", draw_reliability(evaluation), step, dataformats="HWC")
        for number, mistake in enumerate(evaluation.mistakes(self._mistakes), start=1):
            self._writer.add_image(f"{split}_mistakes/{number:03d}", mistake.pixels, step, dataformats="HWC")
            self._writer.add_text(f"{split}_mistakes/{number:03d}", _cell(mistake.caption), step)

    def finish(self, outcome: Outcome, totals: dict[str, Any]) -> None:
        for name, value in totals.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"totals/{name}", value, totals["steps"])
        self._writer.close()


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def start(assignment: Assignment, config: Config, dataset: Dataset, first_step: int, say: Say) -> TensorBoardTracker:
    return TensorBoardTracker(Path(assignment.run) / "tensorboard", config, assignment.tracking.mistakes)
