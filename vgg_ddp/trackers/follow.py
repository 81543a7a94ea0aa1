"""The training's side of the trackers: starts their processes, says what they have to say, and ends them in time.

A process is handed no figures. It follows the files that the training writes anyway, so a tracker costs the training no
time, and one that hangs, raises or crashes leaves it as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.errors import StoppedOnRequest
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.trackers import Assignment, Message, Outcome, position_file

RECORDING = threading.Lock()  # of RUN/environment.json, to which each tracker's listener adds
SECONDS_BEFORE_THE_END = 5.0  # for a training that was stopped or failed: it may start again at once


@contextlib.contextmanager
def followed(
    config: Config, run: RunDirectory, dataset: Path, state: State, trackers: dict[str, str]
) -> Iterator[None]:
    """Have `trackers` (see `vgg_ddp.trackers.wanted`; none on ranks other than 0) follow `run` until this context ends.

    Each tracker keeps its run id in `state`, and so in every checkpoint: a resumed training continues the same run. At
    the end they get `tracking.finish_seconds` to send what is left; less if the training was stopped or failed.
    """
    processes = []
    for name, mode in trackers.items():
        try:
            run_id = state.tracker_run_ids.setdefault(name, _known_run_id(run, name) or _new_run_id(name))
            folders = str(run.path.resolve()), str(dataset.resolve())
            assignment = Assignment(name, mode, config.tracking, *folders, run_id, os.getpid())
            processes.append(FollowerProcess(assignment, run))
        except Exception as error:  # no memory for a process, no room for its log: a watcher never ends the training
            say(f"{name}: cannot be started ({error}); the training goes on without it")
    outcome: Outcome = "failed"
    seconds = min(config.tracking.finish_seconds, SECONDS_BEFORE_THE_END)
    try:
        yield
        outcome, seconds = "finished", config.tracking.finish_seconds
    except StoppedOnRequest:
        outcome = "stopped"
        raise
    finally:
        deadline = time.monotonic() + seconds
        for process in processes:
            process.tell(outcome)
        for process in processes:
            process.wait_until(deadline)


def _known_run_id(run: RunDirectory, tracker: str) -> str | None:
    """The run id under which this folder was followed before, where no checkpoint knows it."""
    try:
        return str(msgspec.json.decode(position_file(run.path, tracker).read_bytes())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _new_run_id(tracker: str) -> str:
    """The id that a W&B sweep or user has set, or one of W&B's own form: eight letters and digits."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
    drawn = "".join(alphabet[byte % 36] for byte in os.urandom(8))
    return os.environ.get("WANDB_RUN_ID", drawn) if tracker == "wandb" else drawn


class FollowerProcess:
    """A tracker's process, seen from the training.

    It is in a session of its own, where neither Ctrl-C nor a signal to the training's process group reaches it, and ends
    once it is told how the training ended, or when the training is gone.
    """

    def __init__(self, assignment: Assignment, run: RunDirectory) -> None:
        self._name, self._run = assignment.tracker, run
        self._log = position_file(run.path, self._name).with_suffix(".log")
        self._log.parent.mkdir(exist_ok=True)
        # With this process's sys.path: python -m would search the current directory first, whatever is in it.
        program = f"import sys; sys.path[:] = {sys.path!r}; from vgg_ddp.trackers.follower import run; run()"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, msgspec.json.encode(assignment).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._ended_late = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Say each message as it comes, and once that the process is gone where it should not be."""
        assert self._process.stdout is not None
        last = None
        with contextlib.suppress(Exception):  # a watcher never ends the training
            for line in self._process.stdout:
                last = msgspec.json.decode(line, type=Message)
                self._say(last)
            code = self._process.wait()
            if code and not self._ended_late and not (last and last.problem):
                self._say(Message(f"its process ended with code {code}; the training goes on without it", problem=True))

    def _say(self, message: Message) -> None:
        text = f"{self._name}: {message.text}"
        say(f"{text}; see {self._log}" if message.problem else text)
        if message.problem:
            with RECORDING:
                environment = msgspec.json.decode(self._run.environment.read_bytes())
                environment["fallbacks"].append(text)
                self._run.write_json(self._run.environment, environment)

    def tell(self, outcome: Outcome) -> None:
        """Say how the training ended; the process then sends what is left, and ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone already
            self._process.stdin.write(outcome.encode())
            self._process.stdin.close()

    def wait_until(self, deadline: float) -> None:
        """Wait for the process to end; at `deadline`, on the monotonic clock, end it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._ended_late = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            text = "did not finish in time and was ended (tracking.finish_seconds); what it sent is kept"
            with contextlib.suppress(Exception):
                self._say(Message(text, problem=True))
        self._listener.join(timeout=5)
