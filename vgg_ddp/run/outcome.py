"""What became of a run (RUN/outcome.json, which a training writes as it begins and as it ends), and how to go on with it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import yaml
from filelock import Timeout

from vgg_ddp.errors import DIVERGED, StoppedOnRequest, UserError, printable
from vgg_ddp.run.directory import RunDirectory, manifest_sha256, named
from vgg_ddp.run.files import lock_at, read_json, replace_file
from vgg_ddp.run.metrics_log import Row

Ending = Literal["running", "finished", "stopped", "failed"]


class Outcome(msgspec.Struct, frozen=True):
    """How a training ended: one that was killed stays "running"; `why` says in one line why one "failed"."""

    state: Ending
    why: str = ""


class Account(msgspec.Struct, frozen=True):
    """The state of a run in words, and the command with which to go on; empty ones for a run that is done."""

    state: str = ""
    words: str = ""
    command: str = ""


@contextlib.contextmanager
def recorded(run: RunDirectory) -> Iterator[None]:
    """Note in RUN/outcome.json that a training runs, and at the end of this context how it ended."""
    _note(run, Outcome("running"))
    try:
        yield
    except BaseException as error:
        _note(run, of(error))
        raise
    _note(run, Outcome("finished"))


def of(error: BaseException) -> Outcome:
    """What an exception that ends a training means."""
    if isinstance(error, StoppedOnRequest):
        return Outcome("stopped")
    text = " ".join(str(error).split())[:500]
    return Outcome("failed", printable(text or type(error).__name__))


def _note(run: RunDirectory, outcome: Outcome) -> None:
    with contextlib.suppress(OSError):  # a full disk; the training itself says so
        replace_file(run.outcome, msgspec.json.encode(outcome))


def account(run: RunDirectory, rows: list[Row]) -> Account:
    """What became of `run`, whose metrics are `rows`, and what to do next; nothing of a folder that is no training's."""
    if not run.config.is_file():  # no training: the answers of several networks as one, say
        return Account()
    outcome = noted(run)
    if outcome.state != "stopped" and _trained(run, rows):
        if _evaluated(run, of_its_end=outcome.state == "failed"):
            return Account()
        evaluate = shlex.join(["vgg-ddp", "evaluate", str(run.path.absolute())])
        why = f": {outcome.why}" if outcome.why else ""
        return Account(
            "Not evaluated", f"It was trained to its end, and has not been evaluated{why}. To do so:", evaluate
        )
    if outcome.state == "running" and _in_use(run):
        return Account("Running", f"It is being trained; the last figures are of {_position(rows)}.")
    config = str((run.path / "config.yaml").absolute())
    command = ["vgg-ddp", "train", config, f"run.dir={run.path.absolute()}", "resume=auto"]
    newest = named(run.checkpoints, "latest")
    again = "To start again:" if newest is None else f"To go on from step {int(newest.name.rpartition('-')[2])}:"
    if outcome.state == "stopped":
        return Account("Stopped", f"It was stopped on request after {_position(rows)}. {again}", shlex.join(command))
    if outcome.state == "failed" and diverged(rows, outcome.why):
        rate = _learning_rate(run)
        command += [f"optimizer.learning_rate={rate / 4:g}"] if rate else ["optimizer.clip_norm=1"]
        said = f"It diverged: the loss is no number after {_position(rows)}. {again[:-1]} more carefully:"
        return Account("Diverged", said, shlex.join(command))
    if outcome.state == "failed":
        return Account("Failed", f"It failed after {_position(rows)}: {outcome.why}. {again}", shlex.join(command))
    said = f"It was killed, or lost with its machine, after {_position(rows)}. {again}"
    return Account("Interrupted", said, shlex.join(command))


def diverged(rows: list[Row], why: str = "") -> bool:
    """Whether the last loss of a training is not finite, which JSON has as null, or `why` it failed says that it diverged."""
    losses = [row.get("loss") for row in rows if row["split"] == "train"]
    return (bool(losses) and losses[-1] is None) or DIVERGED in why


def noted(run: RunDirectory) -> Outcome:
    """How the run ended, as it noted itself; "running" if it noted nothing, as in earlier versions."""
    try:
        return msgspec.json.decode(run.outcome.read_bytes(), type=Outcome)
    except (OSError, msgspec.DecodeError):
        return Outcome("running")


def _trained(run: RunDirectory, rows: list[Row]) -> bool:
    """Whether the training itself came to its end: its summary is not older than the last of `rows`."""
    with contextlib.suppress(UserError):
        steps = (read_json(run.summary) or {}).get("steps")
        return steps is not None and (not rows or steps >= rows[-1]["step"])
    return False


def _evaluated(run: RunDirectory, of_its_end: bool) -> bool:
    """Whether there is an evaluation; `of_its_end`: of a checkpoint that the training ended with, the last or the best."""
    place = run.evaluation / "summary.json"
    if not (place.is_file() and of_its_end):
        return place.is_file()
    summary: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a damaged one, which its readers report
        summary = read_json(place) or {}
    evaluated = summary.get("checkpoint_sha256")
    ends = (named(run.checkpoints, "latest"), named(run.checkpoints, "best"))
    return evaluated is not None and any(end is not None and evaluated == manifest_sha256(end) for end in ends)


def _in_use(run: RunDirectory) -> bool:
    """Whether a process holds the run's folder (see `RunDirectory.claimed`)."""
    lock = lock_at(run.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written, or a file system without locks
        return False
    lock.release()
    return False


def _position(rows: list[Row]) -> str:
    if not rows:
        return "no step"
    return f"step {rows[-1]['step']:,}, epoch {rows[-1]['epoch']:.2f}"


def _learning_rate(run: RunDirectory) -> float | None:
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        settings: dict[str, Any] = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        return float(settings["optimizer"]["learning_rate"])
    return None
