"""Errors of runs in the form of the paper's tables 3 to 6: a row for each way in which a run was tested."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

from vgg_ddp.config import Config, load
from vgg_ddp.data import of_run
from vgg_ddp.errors import UserError
from vgg_ddp.report import words
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json

COLUMNS = ["run", "network", "train S", "test Q", "protocol", "top-1 error, %", "top-5 error, %"]
ON_SCREEN = ["run", "network", "S", "Q", "protocol", "top-1", "top-5"]  # in 80 columns
TITLE = "Test errors, %; S, Q: shorter sides of images in training and test, pixels"
NAMES = {
    "single": "single",
    "shifted": "shifted",
    "dense": "dense",
    "multicrop": "crops",
    "dense+multicrop": "dense & crops",
}
OWN = "own"  # images are not resized, and differ in size


OTHER_DATA = "of other data than the run's own"
OTHER_CHECKPOINT = "of another checkpoint than RUN/evaluation"


def rows(targets: list[Path]) -> tuple[list[list[str]], Counter[str]]:
    """A row for each evaluation of `targets`, and how many evaluations were left out, by reason.

    A target is a run, or a folder of several networks' answers. Its rows are of RUN/evaluation, and of those in
    RUN/evaluations on the same data and of the same checkpoint.

    Raises:
        UserError: a folder has no evaluation, or a damaged one.
    """
    found, left_out = [], Counter[str]()
    for target in targets:
        run = RunDirectory(target)
        there = os.path.isdir(run.evaluations)  # not Path's, which raises an error where it may not be looked into
        others = sorted(path.parent for path in run.evaluations.glob("*/evaluation")) if there else []
        summaries = [read_json(folder / "evaluation" / "summary.json") for folder in (target, *others)]
        known = [summary for summary in summaries if summary is not None]
        own = _trained_on(run) or (known[0]["dataset"] if known else None)
        on_own = [summary for summary in known if summary["dataset"] == own]
        if not on_own:
            which = " on its own data" if known else ""
            raise UserError(f"{target} has no evaluation{which}; run: vgg-ddp evaluate {target}")
        checkpoint = on_own[0].get("checkpoint_sha256")
        of_one = [summary for summary in on_own if summary.get("checkpoint_sha256") == checkpoint]
        found += [_row(run, summary) for summary in of_one]
        left_out[OTHER_DATA] += len(known) - len(on_own)
        left_out[OTHER_CHECKPOINT] += len(on_own) - len(of_one)
    return found, +left_out


def _trained_on(run: RunDirectory) -> str | None:
    """The name of the run's data set; None where it is not known, as of several networks."""
    dataset = of_run.held(run)
    return dataset.name if dataset else None


def _row(run: RunDirectory, summary: dict[str, Any]) -> list[str]:
    members = summary.get("members")
    config = load(run.config) if run.config.is_file() else None
    protocol = summary.get("protocol", {})
    top5 = summary["top5_accuracy"]
    scales = [f"{scale}" if scale else _own_size(run) for scale in protocol.get("scales", [None])]
    return [
        run.path.resolve().name,
        f"{len(members)} networks" if members else _network(config) if config else words.shown(summary["network"]),
        _train_scale(run, config) if config else words.DASH,
        ",".join(scales) if config else words.DASH,
        NAMES[protocol.get("name", "single")] + _if_doubted(protocol.get("enough")),
        f"{100 * (1 - summary['accuracy']):.2f}",
        words.DASH if top5 is None else f"{100 * (1 - top5):.2f}",
    ]


def _if_doubted(enough: float | None) -> str:
    """A note that images get more views than the first only where that gives no class this probability."""
    return "" if enough is None else f" if below {enough:g}"


def _network(config: Config) -> str:
    """As torchvision names it: vgg16, vgg16_bn."""
    return config.network + "_bn" * config.model.batch_norm


def _train_scale(run: RunDirectory, config: Config) -> str:
    """The paper's S: what the shorter side of training images was resized to, pixels."""
    if config.augment.random_resized_crop is not None:
        return "random boxes"
    if config.augment.scale_jitter is not None:
        low, high = config.augment.scale_jitter
        return f"[{low};{high}]"
    return str(config.data.shorter_side or _own_size(run))


def _own_size(run: RunDirectory) -> str:
    """The shorter side of the data set's images, pixels, if all have the same."""
    dataset = of_run.held(run)
    shape = dataset.record.image_shape if dataset else None
    return str(min(shape[:2])) if shape else OWN


def as_csv(table: list[list[str]]) -> str:
    """With the columns' names in front."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *table])
    return text.getvalue()


def as_markdown(table: list[list[str]]) -> str:
    """With the columns' names in front."""
    lines = [COLUMNS, ["---"] * 5 + ["---:"] * 2, *table]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
