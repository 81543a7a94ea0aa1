"""What each rank of a host is doing, in a few bytes of memory that their supervisor reads: phase, step, and since when."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import struct
import time
from typing import Literal, NamedTuple, get_args

Phase = Literal["start", "fetch", "step", "save", "validate", "evaluate", "report", "end"]
PHASES: tuple[Phase, ...] = get_args(Phase)
VARIABLE = "VGG_DDP_ACTIVITY"  # in the environment of a supervised rank: the file of the memory
RESTARTS = "VGG_DDP_RESTARTS"  # the same: how often the ranks were started before it
_LAYOUT = struct.Struct("@qqqqd")  # the fields of `Seen`


class Seen(NamedTuple):
    """What a rank is doing.

    Attributes:
        process: its id; 0 where it has not begun.
        phase: where it is.
        first_step, step: the steps that were taken before this process began, and until now; both 0 before the loop.
        since: when it entered the phase or last made progress in it, on the monotonic clock, which all processes of a
            host share; infinite where it waits for other ranks.
    """

    process: int
    phase: Phase
    first_step: int
    step: int
    since: float


class Activity:
    """One rank's place in the memory. Without a supervisor, memory that nobody else sees."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None, place: int = 0) -> None:
        self._memory = bytearray(_LAYOUT.size) if memory is None else memory
        self._offset = place * _LAYOUT.size
        self._process = self._first_step = 0

    @staticmethod
    def of_rank() -> Activity:
        """That of this process, by its environment."""
        activity = Activity()
        if VARIABLE in os.environ:
            with contextlib.suppress(OSError), open(os.environ[VARIABLE], "r+b") as file:  # gone with its supervisor
                activity = Activity(mmap.mmap(file.fileno(), 0), int(os.environ["LOCAL_RANK"]))
        activity._process = os.getpid()
        activity.enter("start")
        return activity

    def begin(self, step: int) -> None:
        """The loop begins at this step."""
        self._first_step = step
        self.enter("start", step)

    def enter(self, phase: Phase, step: int | None = None, waits: bool = False) -> None:
        """Record that the rank is in `phase`, newly or still; after `step` (None: unchanged); `waits`: for other ranks."""
        seen = self.seen()
        since = seen.since if seen.phase == phase and seen.process else time.monotonic()
        self._write(phase, seen.step if step is None else step, math.inf if waits else since)

    def go_on(self, waits: bool = False) -> None:
        """Record progress within the phase, such as another batch; `waits`: it now waits there for other ranks."""
        seen = self.seen()
        self._write(seen.phase, seen.step, math.inf if waits else time.monotonic())

    def _write(self, phase: Phase, step: int, since: float) -> None:
        fields = self._process, PHASES.index(phase), self._first_step, step, since
        _LAYOUT.pack_into(self._memory, self._offset, *fields)

    def seen(self) -> Seen:
        """What was written last."""
        process, phase, first_step, step, since = _LAYOUT.unpack_from(self._memory, self._offset)
        return Seen(process, PHASES[phase], first_step, step, since)


class Board:
    """The memory of all ranks of this host, seen from their supervisor. It goes with the process: no file is left."""

    def __init__(self, ranks: int) -> None:
        self._file = os.memfd_create("vgg_ddp ranks")
        os.truncate(self._file, ranks * _LAYOUT.size)
        self._memory = mmap.mmap(self._file, 0)
        self.name = f"/proc/{os.getpid()}/fd/{self._file}"
        self.ranks = [Activity(self._memory, place) for place in range(ranks)]

    def clear(self) -> None:
        """As before any rank has written."""
        self._memory[:] = bytes(len(self._memory))

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self._file)


def where(seen: Seen) -> str:
    """Where a rank is, in words that can follow what happened to it."""
    return {
        "start": "at its start",
        "fetch": f"while it fetched the images of step {seen.step + 1}",
        "step": f"in step {seen.step + 1}",
        "save": f"while it saved step {seen.step}",
        "validate": f"in the validation after step {seen.step}",
        "evaluate": "in the evaluation",
        "report": "while it wrote the report",
        "end": "at its end",
    }[seen.phase]


def stopped(number: int, phase: Phase) -> str:
    """In words, what a stop by signal `number` in `phase` means, where no checkpoint could, or need, be saved first."""
    outcome = {
        "start": "before the first step; nothing to save",
        "evaluate": "in the evaluation; nothing is lost, vgg-ddp evaluate RUN makes it",
        "report": "in the evaluation; nothing is lost, vgg-ddp evaluate RUN makes it",
        "end": "at its end; nothing is lost",
    }.get(phase, "at once; resume=auto goes on from the last checkpoint")
    return f"stopped by {signal.Signals(number).name} {outcome}"
