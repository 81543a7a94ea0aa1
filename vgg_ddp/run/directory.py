"""A run's folder: its names, its lock, and its metrics log. Rank 0 alone writes here."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from vgg_ddp.config import Config, load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.errors import Damaged, UserError
from vgg_ddp.run.console import say
from vgg_ddp.run.files import file_sha256, hold, lock_at, recover_exchanged, replace_file
from vgg_ddp.run.metrics_log import read_metrics


class RunDirectory:
    """The paths of a run (see the README, "What you will see")."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.answers = self.path / "answers"
        self.trace = self.path / "profile" / "trace.json"
        self.summary = self.path / "summary.json"
        self.outcome = self.path / "outcome.json"
        self.lock = self.path / ".lock"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation"
        self.evaluations = self.path / "evaluations"  # by other protocols, or on other data
        self.report = self.path / "report" / "index.html"
        self.live = self.path / "report" / "live.html"

    def must_be_new(self) -> None:
        """Raises a `UserError` if the folder holds a run already."""
        if os.path.exists(self.config):  # not Path.exists, which raises an error in a folder that may not be entered
            raise UserError(f"{self.path} holds a run already; continue it with resume=auto, or choose another run.dir")

    def must_be_writable(self) -> None:
        """Raises a `UserError` if nothing can be written in the folder, or where it would be made."""
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if os.path.exists(folder))
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{self.path} cannot be written; give another place with --out FOLDER")

    @contextmanager
    def claimed(self, new: bool) -> Iterator[None]:
        """Make the folder and hold it alone until the end. A folder in which no run began is removed again.

        Args:
            new: refuse a folder that holds a run already.

        Raises:
            UserError: it cannot be made, another process holds it, or it holds a run and should not.
        """
        made = not os.path.exists(self.path)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = lock_at(self.lock)
            hold(lock, 0, say)
            recover_exchanged(self.checkpoints)
        except Timeout:
            raise UserError(f"{self.path} is in use by another training; choose another run.dir") from None
        except OSError as error:
            raise UserError(f"run.dir {self.path} cannot be written: {error.strerror}; choose another") from None
        try:
            if new:
                self.must_be_new()
            yield
        finally:
            if made and not self.config.exists():
                self._remove_empty()
            lock.release()

    def _remove_empty(self) -> None:
        """Take away what `claimed` made, unless something has been written there since."""
        with contextlib.suppress(OSError):
            self.lock.unlink(missing_ok=True)
            self.checkpoints.rmdir()
            self.path.rmdir()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns a disk that is full or read-only into a `UserError`."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{error.filename or self.path} cannot be written: {error.strerror}") from None

    def write_json(self, path: Path, value: Any) -> None:
        """`write` a value as JSON."""
        self.write(path, json.dumps(value, indent=2) + "\n")

    def prepared_here(self, overrides: Sequence[str] = ()) -> Config:
        """The run's configuration, changed by `overrides`.

        The run may be a stranger's: data are prepared where `overrides` say, or in the usual place, never where it says.

        Raises:
            UserError: an override by which the network would compute something else with its weights.
        """
        config, trained = load(self.config, [f"data.directory={DataConfig().directory}", *overrides]), load(self.config)
        before, now = (
            {f"model.{key}": value for key, value in one.model.variant.items()}
            | {"data.normalisation": one.data.normalisation}
            for one in (trained, config)
        )
        for key, value in before.items():
            if now[key] != value:
                raise UserError(f"{key}={now[key]}: {self.path} was trained with {key}={value}; leave the override out")
        return config

    def write(self, path: Path, text: str) -> None:
        """`write_bytes` a text."""
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Replace the file `path`, whose folder is made where it is not there.

        Raises:
            UserError: the disk is full or read-only.
        """
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)

    def keep_metrics_until(self, step: int, epoch_ended: bool) -> None:
        """Drop what was logged after global step `step`, and the epoch's own rows at it unless the epoch had ended."""
        rows = [
            row
            for row in read_metrics(self.metrics)
            if row["step"] < step or (row["step"] == step and (epoch_ended or row["scope"] == "steps"))
        ]
        if self.metrics.exists():
            self.write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def find_run(target: Path) -> tuple[RunDirectory, Path | None]:
    """The run that `target` belongs to, and the checkpoint if it is one, as an absolute path without links.

    Args:
        target: a run directory, or a checkpoint in one.

    Raises:
        UserError: it is neither.
    """
    if os.path.isfile(target / "manifest.json"):
        folder = target.resolve()  # in its own run, wherever the path, or a link to it, begins
        run = RunDirectory(folder.parent.parent)
    else:
        run, folder = RunDirectory(target), None
    if not os.path.isfile(run.config):
        raise UserError(f"{target} is neither a run directory (it has no config.yaml) nor a checkpoint in one")
    return run, folder


def chosen_checkpoint(run: RunDirectory, which: str) -> Path:
    """The folder of the "last" or the "best" checkpoint of a run, as `evaluate.checkpoint` names them.

    Raises:
        UserError: the run has none.
    """
    found = named(run.checkpoints, {"last": "latest", "best": "best"}[which])
    if found is None:
        raise UserError(f"{run.path} has no {which} checkpoint; train first: vgg-ddp train CONFIG")
    return found


def named(checkpoints: Path, pointer: str) -> Path | None:
    """The checkpoint in RUN/checkpoints that the file `pointer`, "latest" or "best", names; None where there is no such file.

    Raises:
        Damaged: it names something else, maybe outside of the run.
    """
    try:
        name = (checkpoints / pointer).read_bytes().decode(errors="replace")
    except OSError:
        return None
    if not is_checkpoint_name(name):
        raise Damaged(f"{checkpoints / pointer} names no checkpoint but {name!r:.80}; write the name of one into it")
    return checkpoints / name


def manifest_sha256(checkpoint: Path) -> str | None:
    """The hash by which an evaluation names its checkpoint; None where the checkpoint is gone."""
    try:
        return file_sha256(checkpoint / "manifest.json")
    except OSError:
        return None


def is_checkpoint_name(name: str) -> bool:
    """Whether it is "step-" and the step in eight digits, or in more where they do not suffice."""
    return re.fullmatch(r"step-[0-9]{8,16}", name) is not None
