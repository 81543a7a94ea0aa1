"""A tracker's process: reads what the training writes into its run's folder, and hands it to the tracker.

Started by `follow`, with an `Assignment` as its argument. All that it is told is one word on its standard
input, how the training ended; if the input ends without a word, the training is gone. Its messages go to the standard
output, one `Message` per line; whatever else is printed goes to RUN/tracking/NAME.log.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import msgspec

from vgg_ddp.analysis import course
from vgg_ddp.config import load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.record import read_record
from vgg_ddp.errors import STOP_SIGNALS
from vgg_ddp.evaluation.stored import read_evaluation
from vgg_ddp.run import outcome as outcomes
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import hold, lock_at, read_json, replace_file
from vgg_ddp.run.metrics_log import read_metrics, read_rows
from vgg_ddp.trackers import TRACKERS, Assignment, Message, Outcome, Say, Tracker, named, position_file
from vgg_ddp.trackers.media import Media

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_AFTER_THE_TRAINING = 30.0  # to finish after one that was killed


class Position(msgspec.Struct):
    """RUN/tracking/NAME.json: how far a run was handed to its tracker.

    A training that continues writes again what came after its checkpoint; the tracker does not get it twice.

    Attributes:
        run_id: under which the tracker knows the run.
        step, rows: the last step handed over, and how many of its rows.
    """

    run_id: str
    step: int = 0
    rows: int = 0


def main(arguments: list[str]) -> int:
    """Follow a run to its end; the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the training decides when it ends, and says so
    os.nice(10)
    say = _take_standard_output()
    assignment = msgspec.json.decode(arguments[0], type=Assignment)
    threading.Thread(target=_end_after, args=(assignment.process,), daemon=True).start()
    try:
        follow(assignment, say)
    except BaseException as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:200]
        say(Message(f"gave up ({type(error).__name__}: {reason}); the training goes on without it", problem=True))
        return 1
    return 0


def _take_standard_output() -> Say:
    """A function that sends messages to the training; from now on, what libraries print goes to the log."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(message: Message) -> None:
        with contextlib.suppress(BrokenPipeError):
            output.write(msgspec.json.encode(message) + b"\n")

    return say


def _end_after(training: int) -> None:
    """End this process group a while after the process `training`, which started it, whatever the tracker does then."""
    while os.getppid() == training:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    time.sleep(SECONDS_AFTER_THE_TRAINING)
    os.killpg(0, signal.SIGKILL)


def follow(assignment: Assignment, say: Say) -> None:
    """Hand the run's rows to its tracker as they come, and finally the evaluation. Raises what the tracker raises."""
    run = RunDirectory(assignment.run)
    dataset = Dataset(assignment.dataset, read_record(run.data))
    module = importlib.import_module(TRACKERS[assignment.tracker])
    lock = lock_at(position_file(run.path, assignment.tracker).with_suffix(".lock"))
    hold(lock, 2 * SECONDS_AFTER_THE_TRAINING, print)  # one that follows a killed training may not be done yet
    try:
        rows = NewRows(run, assignment, dataset.classes)
        tracker: Tracker = module.start(assignment, load(run.config), dataset, rows.first_step, say)
        outcome = None
        while outcome is None:
            outcome = _outcome(assignment.process)
            rows.hand_to(tracker)
            if words := rows.first_warning():
                tracker.warned(words)
        if outcome == "finished":
            tracker.evaluated(rows.step, Media(read_evaluation(run.path), dataset, run.report))
        if outcome == "failed":
            account = outcomes.account(run, read_metrics(run.metrics))
            if account.state:
                tracker.failed(account.state, account.words)
            else:  # the training is done: what failed was another evaluation of it
                outcome = "finished"
        tracker.finish(outcome, read_json(run.summary) or {})
    finally:
        lock.release()


def _outcome(training: int) -> Outcome | None:
    """How the training in the process `training` ended, None if it has not for a while."""
    if select.select([0], [], [], SECONDS_BETWEEN_LOOKS)[0]:
        return msgspec.convert(os.read(0, 64).decode() or "failed", Outcome)
    return None if os.getppid() == training else "failed"  # the end of the input may be held open by its workers


class NewRows:
    """The rows of RUN/metrics.jsonl that a tracker has not had yet.

    Attributes:
        first_step: the first step of which no earlier process has handed over anything.
        step: the step of the last row.
    """

    def __init__(self, run: RunDirectory, assignment: Assignment, classes: list[str]) -> None:
        self._path, self._classes = run.metrics, classes
        self._position_file = position_file(run.path, assignment.tracker)
        self._position = Position(assignment.run_id)
        with contextlib.suppress(OSError, ValueError):
            known = msgspec.json.decode(self._position_file.read_bytes(), type=Position)
            self._position = known if known.run_id == assignment.run_id else self._position
        self._had = msgspec.structs.replace(self._position)  # when this process began
        self.first_step = self._had.step + 1 if self._had.rows else 0
        self._byte = self.step = self._rows = 0
        # The first row of the training, which others are held against, and those that came since the last look.
        self._judged: list[dict[str, Any]] = []
        self._warned = False

    def hand_to(self, tracker: Tracker) -> None:
        """Log the rows that came since the last call, and note how far that is."""
        rows, _, self._byte = read_rows(self._path, self._byte)
        for row in rows:
            self._rows = self._rows + 1 if row["step"] == self.step else 1
            self.step = row["step"]
            is_new = (self.step, self._rows) > (self._had.step, self._had.rows)
            if is_new:
                tracker.log(self.step, named(row, self._classes))
            if is_new or not self._judged:
                self._judged.append(row)
        if (self.step, self._rows) > (self._position.step, self._position.rows):
            self._position.step, self._position.rows = self.step, self._rows
            replace_file(self._position_file, msgspec.json.encode(self._position))

    def first_warning(self) -> str:
        """A warning that the training went astray, the first time that new rows show it; else ""."""
        said = "" if self._warned else course.astray(self._judged, len(self._classes))
        self._judged, self._warned = self._judged[:1], self._warned or bool(said)
        return said


def run() -> NoReturn:
    """The process: `main` with its arguments."""
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # everything is sent; what a library does at exit may wait for a network that is not there
