"""The supervisor of the ranks of one host: starts them with torchrun's elastic agent, and makes sure that they end.

It passes signals on to the ranks, ends the ranks of all hosts when one fails, and kills those that do not end in time. A
thread of its own reads the signals from a pipe (`signal.set_wakeup_fd`): the main thread may be waiting in the C++ code of
a store, where Python's signal handlers do not run.
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

    from vgg_ddp.distributed.rendezvous import MeetingPlace

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEAVE_TIMEOUT = 3.0  # seconds that a supervisor waits at the end until those of the other hosts are done with the store
LEAVE_TIMEOUT_AFTER_GRACE = 0.6  # seconds that it waits at most beyond the grace period of the ranks
RETURNED_CODES = (EXIT_USER_ERROR, EXIT_STOPPED)  # exit codes of ranks that a launch ends with too; any other becomes 1
ENDING, LEFT = "agent/ending", "agent/left"  # keys in the store: the exit code of a host that ends; how many have left


class _Interrupted(Exception):
    """A signal arrived while no rank was running."""


def run(module: str, arguments: list[str], ranks: int, place: MeetingPlace, grace: float | None = None) -> int:
    """Run `python -m module arguments` on `ranks` ranks of this host; the exit code.

    SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closing terminal) ask the ranks to save and end, on every host; SIGUSR1 is
    passed on. When a rank fails, the others are ended, and its exit code is returned if it is one of `RETURNED_CODES`, else 1.

    Args:
        place: where they meet the supervisors and ranks of other hosts, and one another.
        grace: seconds that ranks have to end after a signal before they are killed; None: no limit.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from vgg_ddp.distributed import parent, rendezvous

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ranks print their own errors
    config = LaunchConfig(
        min_nodes=place.hosts,
        max_nodes=place.hosts,
        nproc_per_node=ranks,
        run_id="ranks",
        rdzv_backend=rendezvous.BACKEND,
        rdzv_configs={"place": place},
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the supervisor handles the rest
    )
    watch = _SignalThread(grace, place.store if place.hosts > 1 else None, place.hosts)
    with watch.running():
        try:
            program, *words = parent.command(module, arguments)
            elastic_launch(config, program)(*words)
        except ChildFailedError as error:
            code = exit_code([failure.exitcode for failure in error.failures.values()])
            return watch.failed(code)
        except _Interrupted:
            return 128 + watch.signal
        except (RendezvousError, DistError) as error:
            if watch.signal:
                return 128 + watch.signal
            print(f"vgg-ddp: the host at {place.address}:{place.port} is gone: {_first_line(error)}", file=sys.stderr)
            return 1
    return 0


def exit_code(codes: list[int]) -> int:
    """The exit code of a launch whose ranks ended with `codes`."""
    return next((code for code in RETURNED_CODES if code in codes), 1)


def children() -> list[int]:
    """The process ids of this process's children."""
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


class _SignalThread:
    """Passes signals on to the ranks, ends them when another host ends, and kills those that exceed the grace period."""

    def __init__(self, grace: float | None, store: Store | None, hosts: int) -> None:
        self._grace, self._hosts = grace, hosts
        self._store = store.clone() if store is not None else None  # a connection for this thread
        self._deadline: float | None = None
        self._finished = False
        self._ending_elsewhere = 0
        self.signal = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Handle signals inside the context."""
        if threading.current_thread() is not threading.main_thread():  # signals stay with the program around it
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {}
        for number in (*ENDING_SIGNALS, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored signals, as under nohup, stay ignored
                before[number] = signal.signal(number, self._in_main_thread)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._loop, args=(reader,), daemon=True)
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

    def _loop(self, reader: int) -> None:
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
        """End the ranks of the other hosts too; the exit code: that of a host that ended before with one of ours, or `code`."""
        self._tell_others(code)
        return self._ending_elsewhere if code == 1 and self._ending_elsewhere in RETURNED_CODES else code

    def _tell_others(self, code: int) -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the host of the store is gone
                self._store.compare_set(ENDING, "", str(code))

    def _others_end(self) -> bool:
        assert self._store is not None
        try:
            if not self._store.check([ENDING]):
                return False
            self._ending_elsewhere = int(self._store.get(ENDING))
        except RuntimeError:  # the host of the store is gone, so its ranks have ended or will
            self._store = None
        return True

    def _end_ranks(self) -> None:
        if self._grace is not None:
            self._deadline = time.monotonic() + self._grace
        _send(signal.SIGTERM)  # a rank that is still importing would print a traceback on SIGINT

    def _kill(self) -> None:
        """Kill the ranks and their workers; and this process too, if it does not end within half a second."""
        if children():
            seconds = f" in {self._grace:g} s" if self._grace is not None else ""
            print(f"vgg-ddp: the ranks here did not end{seconds}: killed", file=sys.stderr, flush=True)
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # the agent starts each rank as the leader of a session
        deadline = time.monotonic() + 0.5
        while not self._finished and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._finished:
            os._exit(128 + (self.signal or signal.SIGTERM))

    def _leave(self) -> None:
        """Wait until the other hosts have left too: this process may be serving the store that they still read."""
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            left = self._store.add(LEFT, 1)
            deadline = time.monotonic() + LEAVE_TIMEOUT
            if self._deadline is not None:  # the other hosts kill their ranks at the end of the grace period
                deadline = min(deadline, self._deadline + LEAVE_TIMEOUT_AFTER_GRACE)
            while left < self._hosts and time.monotonic() < deadline:
                time.sleep(0.05)
                left = self._store.add(LEFT, 0)


def _send(number: int) -> None:
    for child in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
