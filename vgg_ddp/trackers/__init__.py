"""Trackers: what shows a run while it runs, on a W&B dashboard or in TensorBoard.

Each runs in a process of its own that follows the run's files, so that nothing it does, waits for or breaks can reach
the training: see `follow` for the training's side and `follower` for the other. RUN/metrics.jsonl, which the training
writes itself, is always there. Nothing here imports a tracker's package.

To add one: a module with a `start` that returns a `Tracker`, its line in `TRACKERS` and in `wanted`, its key in
`TrackingConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from vgg_ddp.config.tracking import TrackingConfig
from vgg_ddp.trackers.modes import check_tensorboard, wandb_mode

if TYPE_CHECKING:
    from vgg_ddp.trackers.media import Media

TRACKERS = {
    "wandb": "vgg_ddp.trackers.weights_and_biases",
    "tensorboard": "vgg_ddp.trackers.tensorboard",
}

MOST_CLASSES = 100  # that have a figure of their own
RANK_FIGURES = ("images_per_second", "data_wait", "memory_bytes")

Outcome = Literal["finished", "stopped", "failed"]  # stopped: on request, to be continued


class Assignment(msgspec.Struct, frozen=True):
    """What a tracker's process is told to do.

    Attributes:
        tracker: a name in `TRACKERS`.
        mode: "online" or "offline" for W&B, "" for the others.
        tracking: the configuration at hand, which may not be the one that the run was trained with.
        run, dataset: folders.
        run_id: under which the tracker knows the run.
        process: the id of rank 0's process, whose memory and processor use belong to the run.
    """

    tracker: str
    mode: str
    tracking: TrackingConfig
    run: str
    dataset: str
    run_id: str
    process: int


class Message(msgspec.Struct, frozen=True):
    """A line that a tracker's process has to say; `problem` marks one to keep on record."""

    text: str
    problem: bool = False


Say = Callable[[Message], None]


class Tracker(Protocol):
    """Shows one run. Lives in a process of its own and may raise or hang as it likes."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show figures of optimizer step `step`; steps never go back."""
        ...

    def evaluated(self, step: int, media: Media) -> None:
        """The last evaluation on the test split, after `step` steps."""
        ...

    def warned(self, words: str) -> None:
        """The training goes on, but its result will make no sense, e.g. as a loss rose far above that of guessing."""
        ...

    def failed(self, state: str, words: str) -> None:
        """The training failed: "Diverged" say, and what is known of it."""
        ...

    def finish(self, outcome: Outcome, totals: dict[str, Any]) -> None:
        """Nothing comes after; `totals` is RUN/summary.json, or empty where there is none."""
        ...


def wanted(config: TrackingConfig) -> dict[str, str]:
    """The trackers of a run by name, with the mode of each.

    Raises:
        UserError: one that was asked for cannot be had.
    """
    trackers = {}
    mode = wandb_mode(config.wandb)
    if mode != "disabled":
        trackers["wandb"] = mode
    if config.tensorboard:
        check_tensorboard()
        trackers["tensorboard"] = ""
    return trackers


def named(row: dict[str, Any], classes: Sequence[str] = ()) -> dict[str, float]:
    """The figures of a row of RUN/metrics.jsonl by the names under which every tracker shows them: `train/loss`.

    Figures of one rank are named `ranks/images_per_second/0`, those of a class `validation_class/cat`; at most
    `MOST_CLASSES` have one.
    """
    section = row["split"] if row["scope"] == "steps" or row["split"] != "train" else "train_epoch"
    values = {"epoch": float(row["epoch"])}
    for key, value in row.items():
        if key in ("step", "epoch", "split", "scope"):
            continue
        if key == "ranks":
            values |= {f"ranks/{name}/{rank}": v for name, each in value.items() for rank, v in enumerate(each)}
        elif key == "class_accuracy" and len(classes) <= MOST_CLASSES:
            shares = zip(classes, value, strict=False)
            values |= {f"{section}_class/{name}": share for name, share in shares if share is not None}
        elif key == "seconds":  # of training so far, whatever kind of row it is
            values["throughput/training_seconds"] = value
        elif key in RANK_FIGURES:
            values[f"throughput/{key}"] = value
            if "ranks" not in row:  # there is one
                values[f"ranks/{key}/0"] = value
        elif isinstance(value, int | float):
            values[f"{section}/{'learning_rate' if key == 'lr' else key}"] = value
    return values


def position_file(run: Path, tracker: str) -> Path:
    """Where a tracker's process notes how far it came: see `follower.Position`."""
    return run / "tracking" / f"{tracker}.json"
