"""Trains the cells of a study, each as `vgg-ddp train` in a process of its own, and gives up those that are hopeless."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from vgg_ddp import cores
from vgg_ddp.config import Config, load
from vgg_ddp.distributed import parent
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.failures import FAILED
from vgg_ddp.distributed.launcher import ranks_of_this_host
from vgg_ddp.errors import EXIT_OK, EXIT_STOPPED, STOP_SIGNALS, UserError, printable
from vgg_ddp.run import outcome
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import Row, last_written, read_metrics, read_rows
from vgg_ddp.study.definition import Cell, Definition
from vgg_ddp.study.trials import Attempt, Ending, Trials

POLL = 0.2  # seconds between two looks at what the trainings have written
STOPPED = (EXIT_STOPPED, *(128 + number for number in STOP_SIGNALS), *(-number for number in STOP_SIGNALS))


class Process(Protocol):
    """What a cell is trained by: `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to stop, by SIGTERM."""
        ...

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...


Start = Callable[[list[str], Path, dict[str, str]], Process]


def start_command(words: list[str], output: Path, variables: dict[str, str]) -> Process:
    """Start `vgg-ddp WORDS`, with its output appended to a file, and these variables in its environment.

    Ctrl-C does not reach it; this process passes it on. It ends when this process is killed.
    """
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "vgg_ddp", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
            preexec_fn=partial(parent.end_with, os.getpid()),
        )


@dataclass
class _Running:
    cell: Cell
    attempt: Attempt
    process: Process
    place: int
    told: int = 0  # bytes of its output that earlier attempts left
    read: int = 0  # bytes of metrics.jsonl
    hopeless: bool = False


class Cells:
    """Trains cells in a study's folder.

    Args:
        words: overrides for every cell's command, before the cell's own.
        ended: called whenever a cell has come to its end.
    """

    def __init__(
        self,
        folder: Path,
        definition: Definition,
        trials: Trials,
        words: list[str],
        places: list[dict[str, str]],
        ended: Callable[[], object],
        start: Start = start_command,
    ) -> None:
        self._folder, self._definition, self._trials, self._words = folder, definition, trials, words
        self._places, self._ended, self._start = places, ended, start
        self._running: list[_Running] = []

    def train(self, cells: list[Cell]) -> None:
        """Train `cells`, as many at once as there are places. An exception, such as a signal's, stops those that run first."""
        waiting = list(cells)
        with self._stopping():
            while waiting or self._running:
                free = set(range(len(self._places))) - {running.place for running in self._running}
                for place in sorted(free)[: len(waiting)]:
                    self._begin(waiting.pop(0), place)
                time.sleep(POLL)
                for running in list(self._running):
                    self._look(running)

    def _begin(self, cell: Cell, place: int) -> None:
        run = run_folder(self._folder, cell)
        words = ["train", str(self._folder / "base.yaml"), *self._words, *cell.words, f"run.dir={run}", "resume=auto"]
        run.parent.mkdir(exist_ok=True)
        attempt = self._trials.begin(cell)
        output = run.with_name(f"{cell.name}.txt")
        told = output.stat().st_size if output.is_file() else 0
        process = self._start(words, output, self._places[place])
        self._running.append(_Running(cell, attempt, process, place, told))

    def _look(self, running: _Running) -> None:
        code = running.process.poll()
        if code is not None:
            self._running.remove(running)
            self._note(running, code)
            return
        metrics = run_folder(self._folder, running.cell) / "metrics.jsonl"
        if (
            metrics.is_file() and metrics.stat().st_size < running.read
        ):  # cut back to a checkpoint, from which it goes on
            running.read = 0
        new = read_rows(metrics, running.read)
        running.read = new.end
        for row in validations(new.rows):
            value = row[self._definition.objective]
            if value is None or running.hopeless:
                continue
            if running.attempt.is_hopeless(math.ceil(row["epoch"]), value):
                running.hopeless = True
                running.process.terminate()

    def _note(self, running: _Running, code: int) -> None:
        """Write down how a cell has ended."""
        run = RunDirectory(run_folder(self._folder, running.cell))
        rows = read_metrics(run.metrics)
        name, attempt = running.cell.name, running.attempt
        value = objective(run, rows, self._definition) if code == EXIT_OK else None
        if value is not None:
            attempt.done(value)
            say(f"{name}: {said(self._definition, value)}")
        elif code in STOPPED and running.hopeless:
            attempt.given_up()
            say(f"{name}: given up as hopeless")
        elif code in STOPPED:
            raise UserError(f"{name} was stopped from outside; start the study again to go on with it")
        else:
            reason = failure(run.path.with_name(f"{name}.txt"), code, running.told)
            ending: Ending = "diverged" if outcome.diverged(rows, reason) else "failed"
            attempt.failed(ending, reason)
            say(f"{name}: {ending}: {reason}")
        self._ended()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Ends what still runs: each training saves a checkpoint, with which it goes on when the study does."""
        try:
            yield
        finally:
            for running in self._running:
                running.process.terminate()
            for running in self._running:
                running.process.wait()


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell of the study in `folder` is trained."""
    return folder / "runs" / cell.name


def validations(rows: list[Row]) -> list[Row]:
    """The validations of a training, in the order of their steps."""
    return [row for row in last_written(rows) if row["split"] == "validation"]


def objective(run: RunDirectory, rows: list[Row], definition: Definition) -> float | None:
    """The figure that cells are compared by: of the images held out, at the checkpoint that the run evaluates."""
    found = validations(rows)
    if not found:
        return None
    chosen = found[-1]
    if load(run.config).evaluate.checkpoint == "best":
        best = (read_json(run.summary) or {}).get("best_validation_accuracy")  # which depends on `stop.min_delta`
        highest = max(found, key=lambda row: row["accuracy"] or 0.0)
        chosen = next((row for row in found if row["accuracy"] == best), highest)
    value = chosen[definition.objective]
    return None if value is None else float(value)


def said(definition: Definition, value: float) -> str:
    """An objective in words."""
    return f"validation accuracy {value:.2%}" if definition.objective == "accuracy" else f"validation loss {value:.4f}"


def failure(output: Path, code: int, first: int = 0) -> str:
    """The line in which a command said why it failed, or its exit code and last line, from byte `first` on."""
    lines = output.read_bytes()[first:].decode(errors="replace").splitlines() if output.is_file() else []
    ours = [line.removeprefix("vgg-ddp: ") for line in lines if line.startswith("vgg-ddp: ")]
    told = [line for line in ours if FAILED not in line]
    others = [line.strip() for line in lines if line.strip() and not line.startswith("vgg-ddp: ")]
    last = others[-1] if others else ""  # of a traceback, the error
    return printable(told[-1] if told else f"it ended with exit code {code}: {last}".rstrip(": "))[:500]


def places(config: Config, count: int) -> list[dict[str, str]]:
    """The variables for each of `count` trainings at once: its share of the GPUs or, without any, of the cores."""
    if count == 1:
        return [{}]
    gpus = Devices.of(config).gpus()
    if gpus:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = shown.split(",")[:gpus] if shown else [str(number) for number in range(gpus)]
        each = max(1, gpus // count)
        if count > gpus:
            say(f"{count} trainings at once on {gpus} GPUs: some share one")
        return [
            {"CUDA_VISIBLE_DEVICES": ",".join(names[(k * each + i) % gpus] for i in range(each))} for k in range(count)
        ]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores.usable() // (count * ranks_of_this_host(config))))
    return [{"OMP_NUM_THREADS": threads}] * count
