"""Weights & Biases: one W&B run per training, in RUN/wandb. Only a tracker's own process imports this."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import wandb

from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.trackers import Assignment, Message, Outcome, Say
from vgg_ddp.trackers.media import PER_CLASS, PREDICTIONS, RELIABILITY, Media, draw_confusion, draw_reliability

PACKAGE = Path(__file__).parents[1]
SECONDS_TO_CONNECT = 20.0
MOST_CLASSES_OF_A_CHART = 100  # its table has a row a cell; W&B draws 10,000 rows

SAID = ("train", "validation/", "throughput/images_per_second")  # in a line of the log
# What W&B's table of runs shows of a metric, as `NAME.min` and the like. A sweep chooses by `validation/accuracy`, which is not
# among them, so that its last value stands under its own name; the best is in totals/best_validation_accuracy.
SUMMARIES = {
    "train/loss": "min,last",
    "train/accuracy": "max,last",
    "validation/loss": "min,last",
    "throughput/images_per_second": "mean,last",
    "throughput/data_wait": "mean,last",
    "throughput/memory_bytes": "max,last",
}


class WandbTracker:
    """A `vgg_ddp.trackers.Tracker` that logs to one W&B run."""

    def __init__(self, run: wandb.Run, assignment: Assignment, dataset: Dataset, first_step: int) -> None:
        self._run, self._tracking, self._dataset, self._first_step = run, assignment.tracking, dataset, first_step
        self._checkpoints = RunDirectory(assignment.run).checkpoints
        for name, summary in SUMMARIES.items():
            run.define_metric(name, summary=summary)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log `values` at `step`; a line of them goes to the console, which W&B shows as the run's log."""
        shown = [f"{name} {values[name]:.4g}" for name in values if name.startswith(SAID)]
        print(f"step {step}, epoch {values['epoch']:.2f}: {', '.join(shown)}")
        self._run.log(values, step=self._monotonic(step))

    def evaluated(self, step: int, media: Media) -> None:
        """Log the figures, tables, pictures and the page of an evaluation."""
        stored, split = media.evaluation, media.split
        logged: dict[str, Any] = {
            f"{split}/predictions": wandb.Table(
                list(PREDICTIONS), [[wandb.Image(pixels), *row] for pixels, *row in media.predictions()]
            ),
            f"{split}/per_class": wandb.Table(list(PER_CLASS), media.per_class),
            f"{split}/confusion_picture": wandb.Image(draw_confusion(media)),
            f"{split}/reliability": wandb.Table(list(RELIABILITY), media.reliability),
            f"{split}/reliability_diagram": wandb.Image(draw_reliability(media)),
            f"{split}/mistakes": [
                wandb.Image(mistake.pixels, caption=mistake.caption)
                for mistake in media.mistakes(self._tracking.mistakes)
            ],
        }
        if len(media.classes) <= MOST_CLASSES_OF_A_CHART:
            logged[f"{split}/confusion_matrix"] = wandb.plot.confusion_matrix(
                y_true=stored.label.tolist(), preds=stored.prediction.tolist(), class_names=media.classes
            )
        if media.report.is_file():
            logged[f"{split}/report"] = wandb.Html(str(media.report), inject=False)
        self._run.log(media.scalars | logged, step=self._monotonic(step))

    def warned(self, words: str) -> None:
        """Send an alert, as `failed` does."""
        print(words)
        self._run.alert(title=f"Went astray: {self._run.name}", text=words, level="WARN")

    def failed(self, state: str, words: str) -> None:
        """Send an alert, which W&B passes on by mail or Slack, as the user has configured it."""
        print(f"{state}: {words}")
        self._run.alert(title=f"{state}: {self._run.name}", text=words, level="ERROR")

    def finish(self, outcome: Outcome, totals: dict[str, Any]) -> None:
        """Write the totals to the run's summary, upload checkpoints where asked to, and end the W&B run."""
        self._run.summary.update({f"totals/{name}": value for name, value in totals.items()})
        if self._tracking.artifacts:
            self._log_checkpoints()
            self._run.log_code(str(PACKAGE), name="source-vgg_ddp")
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == "finished" else 1)

    def _monotonic(self, step: int) -> int:
        """`step`, or the next step that W&B still takes, if a continued run has already sent something of `step`."""
        return max(step, self._run.step, self._first_step)

    def _log_checkpoints(self) -> None:
        """The newest and the best checkpoint as versions of one artifact, made from the data set with its hash."""
        record = self._dataset.record
        data = wandb.Artifact(_artifact_name(record.name), "dataset", metadata={"sha256": self._dataset.sha256})
        data.add_file(str(self._dataset.directory / "dataset.json"))  # it holds the hash of every file
        if self._run.offline:  # W&B records inputs only online
            self._run.log_artifact(data)
        else:
            self._run.use_artifact(data)
        folders: dict[str, list[str]] = {}
        for pointer in ("latest", "best"):
            if (file := self._checkpoints / pointer).is_file():
                folders.setdefault(file.read_text(), []).append(pointer)
        for name, aliases in folders.items():
            folder = self._checkpoints / name
            metadata = {"dataset_sha256": self._dataset.sha256} | json.loads((folder / "manifest.json").read_text())
            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "model", metadata=metadata)
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact, aliases=[*aliases, name])


def _artifact_name(name: str) -> str:
    """A data set's name in the characters that W&B takes."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:100]


def start(assignment: Assignment, config: Config, dataset: Dataset, first_step: int, say: Say) -> WandbTracker:
    """Begin the W&B run, or go on with it. One that cannot be reached is written offline instead."""
    os.environ.setdefault("WANDB_DATA_DIR", f"{assignment.run}/wandb")  # tables to upload later stay with their run
    mode = assignment.mode
    run = None
    if mode == "online":
        try:
            run = _init(assignment, config, "online")
            say(Message(f"{run.url}"))
        except Exception as error:
            wandb.teardown()
            reason = " ".join(str(error).split())[:200]
            text = f"cannot be reached ({reason}), written offline instead; later: wandb sync {_offline(assignment)}"
            say(Message(text, problem=True))
    if run is None:
        run = _init(assignment, config, "offline")
        if mode == "offline":
            say(Message(f"written offline; to upload it: wandb sync {_offline(assignment)}"))
    return WandbTracker(run, assignment, dataset, first_step)


def _offline(assignment: Assignment) -> str:
    return f"{assignment.run}/wandb/offline-run-*-{assignment.run_id}"


def _init(assignment: Assignment, config: Config, mode: Any) -> wandb.Run:
    tracking = assignment.tracking
    environment = json.loads(RunDirectory(assignment.run).environment.read_text())
    return wandb.init(
        id=assignment.run_id,
        resume="allow",
        mode=mode,
        dir=assignment.run,
        project=tracking.project or os.environ.get("WANDB_PROJECT") or "vgg_ddp",
        entity=tracking.entity,
        group=tracking.group,
        name=tracking.name or os.environ.get("WANDB_NAME") or Path(assignment.run).name,
        tags=tracking.tags or None,  # an empty list would take the place of WANDB_TAGS
        job_type="train",
        config=msgspec.to_builtins(config) | {"environment": environment},
        allow_val_change=True,
        save_code=False,
        settings=wandb.Settings(
            console="wrap",
            silent=True,
            disable_code=True,
            program=environment["command"],
            git_commit=(environment["commit"] or "").removesuffix("-changed") or None,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", SECONDS_TO_CONNECT)),
            finish_timeout=0.8 * tracking.finish_seconds,  # before the training ends this process
            x_transaction_log_flush_interval=1.0,  # so that a killed process loses at most a second
            x_stats_pid=assignment.process,
        ),
    )
