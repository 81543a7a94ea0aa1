"""Torchrun's elastic agent with the manners of this project: it starts this host's ranks, and sees to it that they end.

Signals are read from a pipe by a thread of their own (`signal.set_wakeup_fd`), since the agent may be waiting inside the
C++ of a store, where Python's handlers do not run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vgg_ddp.errors import EXIT_STOPPED, EXIT_USER_ERROR

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store
    from torch.distributed.launcher.api import LaunchConfig

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OTHERS_LEAVE_WITHIN = 3.0  # seconds that the host of the store waits for the others to read their last from it
LEAVE_AFTER_GRACE = 0.6  # seconds that it waits at most beyond the time that ranks have to end after a signal
OURS = (EXIT_USER_ERROR, EXIT_STOPPED)
ENDING, LEFT = "agent/ending", "agent/left"


class _Interrupted(Exception):
    """A signal came while no rank was running."""


def run(config: LaunchConfig, words: list[str], grace: float | None = None, store: Store | None = None) -> int:
    """Run `words` (a program and its arguments) on the ranks of this host; the exit code.

    SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closing terminal) ask the ranks to save and end, on every host; SIGUSR1 is
    passed on. When a rank fails, the others are ended, and its exit code is returned if it is one of ours.

    Args:
        grace: seconds that ranks have to end after a signal before they are killed; None waits for as long as they take.
        store: one that the agents of all hosts share; None for a single host.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks speak for themselves
    config.signals_to_handle = "SIGQUIT"  # the rest are handled here
    watch = _Watch(grace, store, config.max_nodes)
    with watch.watching():
        try:
            elastic_launch(config, words[0])(*words[1:])
        except ChildFailedError as error:
            code = exit_code([failure.exitcode for failure in error.failures.values()])
            return watch.failed(code)
        except _Interrupted:
            return 128 + watch.signal
        except (RendezvousError, DistError) as error:
            if watch.signal:
                return 128 + watch.signal
            print(f"vgg-ddp: the host at {config.rdzv_endpoint} is gone: {_first_line(error)}", file=sys.stderr)
            return 1
    return 0


def exit_code(codes: list[int]) -> int:
    """The exit code of a launch whose ranks ended with `codes`."""
    return next((ours for ours in OURS if ours in codes), 1)


def children() -> list[int]:
    """The processes that this one has started and that still run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


class _Watch:
    """A thread that passes signals on, hears of other hosts that end, and kills ranks that take too long."""

    def __init__(self, grace: float | None, store: Store | None, hosts: int) -> None:
        self._grace, self._hosts = grace, hosts
        self._store = store.clone() if store is not None else None  # a connection of the thread's own
        self._deadline: float | None = None
        self._finished = False
        self._ending_elsewhere = 0
        self.signal = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {}
        for number in (*ENDING_SIGNALS, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, self._in_main_thread)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._finished = True
            thread.join()
            self._leave()
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if number in ENDING_SIGNALS and not self._finished and not children():
            self.signal = number
            raise _Interrupted

    def _watch(self, reader: int) -> None:
        while not self._finished:
            if select.select([reader], [], [], 0.1)[0]:
                for number in os.read(reader, 64):
                    self._signalled(number)
            if self._store is not None and self._deadline is None and not self.signal and self._others_end():
                self._end_ranks()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGUSR1:
            _send(number)
        elif self.signal and number == signal.SIGINT:  # Ctrl-C again
            self._kill()
        elif number in ENDING_SIGNALS:
            self.signal = number
            self._tell_others(128 + number)
            self._end_ranks()

    def failed(self, code: int) -> int:
        """Have the other hosts end too; the code to exit with: `code`, or the one that another host ends with."""
        self._tell_others(code)
        return self._ending_elsewhere if code == 1 and self._ending_elsewhere in OURS else code

    def _tell_others(self, code: int) -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # its host is gone already
                self._store.compare_set(ENDING, "", str(code))

    def _others_end(self) -> bool:
        assert self._store is not None
        try:
            if not self._store.check([ENDING]):
                return False
            self._ending_elsewhere = int(self._store.get(ENDING))
        except RuntimeError:  # the host of the store is gone: its ranks are, or will be
            self._store = None
        return True

    def _end_ranks(self) -> None:
        if self._grace is not None:
            self._deadline = time.monotonic() + self._grace
        _send(signal.SIGTERM)  # of SIGINT, a rank that is still starting would make a traceback

    def _kill(self) -> None:
        """Kill the ranks and their workers; and this process, if it does not end then."""
        if children():
            seconds = f" in {self._grace:g} s" if self._grace is not None else ""
            print(f"vgg-ddp: the ranks here did not end{seconds}: killed", file=sys.stderr, flush=True)
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # the agent starts each rank in a session of its own
        deadline = time.monotonic() + 0.5
        while not self._finished and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._finished:
            os._exit(128 + (self.signal or signal.SIGTERM))

    def _leave(self) -> None:
        """Let the other hosts read their last from the store before this process, which may be its host, ends."""
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            left = self._store.add(LEFT, 1)
            deadline = time.monotonic() + OTHERS_LEAVE_WITHIN
            if self._deadline is not None:  # after a signal: whoever is not gone soon after it is killed there
                deadline = min(deadline, self._deadline + LEAVE_AFTER_GRACE)
            while left < self._hosts and time.monotonic() < deadline:
                time.sleep(0.05)
                left = self._store.add(LEFT, 0)


def _send(number: int) -> None:
    for child in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
