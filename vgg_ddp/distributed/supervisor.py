"""The supervisor of the ranks of one host: starts them, several by torchrun's elastic agent, and makes sure that they end.

It passes signals on to the ranks, ends the ranks of all hosts when one fails or hangs, kills those that do not end in time,
and starts all again where that may help (`failures`). A thread of its own watches: the main thread may be waiting in the C++
code of a store, where Python's signal handlers do not run; so the thread reads the signals from a pipe
(`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import msgspec

from vgg_ddp.distributed import activity
from vgg_ddp.distributed.failures import Ending, Restarts
from vgg_ddp.distributed.fork_server import ForkServer
from vgg_ddp.distributed.hangs import Hangs
from vgg_ddp.errors import EXIT_LOST_RANK, STOP_SIGNALS
from vgg_ddp.run.console import complain

if TYPE_CHECKING:
    from vgg_ddp.distributed.rendezvous import MeetingPlace

LEAVE_TIMEOUT = 3.0  # seconds that a supervisor waits at the end until those of the other hosts are done with the store
LEAVE_TIMEOUT_AFTER_GRACE = 0.6  # seconds that it waits at most beyond the grace period of the ranks
FAILURE_GRACE = 5.0  # seconds that ranks have to end after another has failed
FROZEN = 2.0  # seconds between looks that mean that the ranks were suspended too: by Ctrl-Z, or a container's freezer
REGATHER_TIMEOUT = 60.0  # seconds that the other hosts have to end their ranks before all start again
ENDING, AGAIN, LEFT = (
    "agent/ending",
    "agent/again",
    "agent/left",
)  # keys: how ranks ended; hosts that start again, or left


@dataclass(frozen=True)
class Task:
    """What the ranks run.

    Attributes:
        module, arguments: its `main(arguments)` is run, and returns the exit code.
        resumed: the arguments after a restart.
        restarts, timeout: the keys of the configuration; 0 restarts: none.
    """

    module: str
    arguments: list[str]
    resumed: list[str]
    restarts: int = 0
    timeout: float | None = None


class _Interrupted(Exception):
    """A signal arrived while no rank was running."""


def run(task: Task, ranks: int, place: MeetingPlace | None, server: ForkServer, grace: float | None = None) -> int:
    """Run a task on `ranks` ranks of this host; the exit code.

    `STOP_SIGNALS` ask the ranks to save and end, on every host. When a rank fails, the others are ended, and all start again
    where the task allows it; else the exit code is one of `RETURNED_CODES` where a rank had it, 128 + n after a signal, or 1.

    Args:
        place: where they meet one another, and the supervisors and ranks of other hosts; None: a single rank in all,
            for which no torch is imported here.
        server: of the task's module.
        grace: seconds that ranks have to end after SIGTERM, SIGINT or SIGHUP before they are killed; None: no limit.
    """
    lost = () if place is None else _errors_of_other_hosts()
    board = activity.Board(ranks)
    watch = _Watch(task, board, place, server, grace)
    try:
        with watch.running():
            for attempt in itertools.count():
                variables = {activity.VARIABLE: board.name, activity.RESTARTS: str(attempt)}
                watch.begin(attempt)
                arguments = task.resumed if attempt else task.arguments
                if place is None:
                    codes = server.run_alone(variables, arguments)
                else:
                    codes = _run_by_agent(ranks, place, _name(attempt), server, variables, arguments)
                ending = watch.ended(codes)
                if ending.text:
                    complain(f"vgg-ddp: {ending.text}")
                if not ending.restart:
                    break
                watch.regather()
        return ending.code
    except _Interrupted:
        complain(f"vgg-ddp: {activity.stopped(watch.signal, 'start' if not watch.attempt else 'fetch')}")
        return 128 + watch.signal
    except lost as error:
        if not watch.signal:
            complain(f"vgg-ddp: a host is gone: {_first_line(error)}")
        return 128 + watch.signal if watch.signal else 1
    finally:
        board.close()


def _errors_of_other_hosts() -> tuple[type[Exception], ...]:
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError

    return RendezvousError, DistError


def _run_by_agent(
    ranks: int, place: MeetingPlace, name: str, server: ForkServer, variables: dict[str, str], arguments: list[str]
) -> dict[int, int]:
    """The exit codes of those of this host's ranks that did not end well, by rank."""
    from vgg_ddp.distributed import rendezvous
    from vgg_ddp.distributed.agent import ForkingAgent

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ranks print their own errors
    return ForkingAgent(server, ranks, variables, arguments, rendezvous.Rendezvous(place, name)).codes()


class _Watch:
    """Passes signals on to the ranks, ends them when one fails, hangs or ends elsewhere, and kills those that do not end."""

    def __init__(
        self, task: Task, board: activity.Board, place: MeetingPlace | None, server: ForkServer, grace: float | None
    ) -> None:
        self._timeout, self._board, self._grace = task.timeout, board, grace
        self._server = server
        self._host, self._hosts, self._address, self._store = 0, 1, "", None
        if place is not None and place.hosts > 1:
            self._host, self._hosts, self._address = place.host, place.hosts, f"{place.address}:{place.port}"
            self._store = place.store.clone()  # a connection for this thread
        self._restarts = Restarts(task.restarts, alone=place is None)
        self._lock = threading.Lock()  # of what one launch of the ranks sets
        self._finished = self._suspended = False
        self.signal = 0
        self.begin(0)

    def begin(self, attempt: int) -> None:
        """Before the ranks are started."""
        with self._lock:
            self._server.ranks.clear()
            self._board.clear()
            self.attempt = attempt
            self._deadline: float | None = None
            self._elsewhere: Ending | None = None
            self._hangs = Hangs(self._timeout)
            self._killed = False  # whether those that did not end were
            self._hung: dict[int, float] = {}  # by local rank, the seconds after which it was killed
            self._continued = 0.0  # when this process and the ranks last went on after a pause
        if self.signal:  # which came when none was running
            raise _Interrupted

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Handle signals inside the context."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before, previous = {}, -1
        alone = threading.current_thread() is threading.main_thread()
        if alone:  # else signals stay with the program around it
            for number in (*STOP_SIGNALS, signal.SIGTSTP):
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
            if alone:
                signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if number in STOP_SIGNALS and not self._finished and not self._server.running():
            self.signal = number
            raise _Interrupted

    def _loop(self, reader: int) -> None:
        looked = time.monotonic()
        while not self._finished:
            numbers = os.read(reader, 64) if select.select([reader], [], [], 0.1)[0] else b""
            with self._lock:
                since, looked = looked, time.monotonic()
                if looked - since > FROZEN:
                    self._continued = looked
                    if self._deadline is not None:
                        self._deadline += looked - since
                for number in numbers:
                    self._signalled(number)
                if self._deadline is None and not self.signal:
                    self._look_elsewhere()
                    self._look_here()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._kill()
                if self._suspended and self._all_forked():  # else a rank that is being started would go on
                    self._pause()

    def _signalled(self, number: int) -> None:
        if self.signal and number == signal.SIGINT:  # Ctrl-C again
            self._kill()
        elif number == signal.SIGUSR1:  # a scheduler's, long before it ends the job
            self.signal = self.signal or number
            self._send(number)
        elif number == signal.SIGTSTP:
            self._suspended = True
        elif number in STOP_SIGNALS:
            self.signal = number
            self._tell(Ending(128 + number))
            self._end_ranks(self._grace)

    def _pause(self) -> None:
        """Stop this process and its ranks until a shell continues them.

        Do nothing where no shell could (the kernel, too, ignores Ctrl-Z in the process group of a session's leader), or
        with several hosts, since the others would wait in vain.
        """
        self._suspended = False
        if os.getpgrp() == os.getsid(0) or self._hosts > 1:
            return
        self._send(signal.SIGSTOP)
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # stops all threads, this one before it goes on
        self._send(signal.SIGCONT)

    def ended(self, codes: dict[int, int]) -> Ending:
        """What the exit codes of this host's ranks mean for the launch, the same on all hosts unless a signal came.

        Args:
            codes: of the ranks that failed, by rank.
        """
        wait = FAILURE_GRACE if EXIT_LOST_RANK in codes.values() else 0.0  # for the host that may know why
        elsewhere = self._read_ending(wait)
        asked = self.signal or (elsewhere.code - 128 if elsewhere is not None and elsewhere.code > 128 else 0)
        if not codes and (asked or elsewhere is None):
            return Ending(0)
        if elsewhere is not None and not asked:
            ending = elsewhere
        else:
            first = self._host * len(self._board.ranks)
            seen = {first + local: rank.seen() for local, rank in enumerate(self._board.ranks)}
            hung = {first + local: seconds for local, seconds in self._hung.items()}
            ours = self._restarts.judge(codes, seen, hung, asked, self._killed)
            ending = ours if asked else self._tell(ours)
        self._restarts.note(ending)
        return ending

    def regather(self) -> None:
        """Wait until the other hosts have ended their ranks too.

        Raises:
            DistError: one does not.
        """
        if self._store is None:
            return
        from torch.distributed import DistError

        deadline = time.monotonic() + REGATHER_TIMEOUT
        there = self._store.add(self._key(AGAIN), 1)
        while there < self._hosts:
            if time.monotonic() > deadline:
                raise DistError(f"{there} of {self._hosts} hosts start again")
            time.sleep(0.05)
            there = self._store.add(self._key(AGAIN), 0)

    def _tell(self, ending: Ending) -> Ending:
        """Tell the other hosts how the ranks ended; what was told first holds."""
        if self._store is None:
            return ending
        with contextlib.suppress(RuntimeError):  # the host of the store is gone
            self._store.compare_set(self._key(ENDING), "", msgspec.json.encode(ending).decode())
        return self._read_ending() or ending

    def _read_ending(self, seconds: float = 0.0) -> Ending | None:
        """How a host says that this launch of the ranks ended, waiting up to `seconds` for it."""
        deadline = time.monotonic() + seconds
        while self._store is not None:
            try:
                if self._store.check([self._key(ENDING)]):
                    return msgspec.json.decode(self._store.get(self._key(ENDING)), type=Ending)
            except RuntimeError:  # so its ranks have ended or will
                self._store = None
                return Ending(1, f"the host at {self._address} is gone")
            except ValueError:
                return Ending(1, "the store of the launch holds what no host has written")
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return None

    def _key(self, name: str) -> str:
        return f"{name}/{self.attempt}"

    def _look_elsewhere(self) -> None:
        """End the ranks here if those of another host end."""
        self._elsewhere = self._read_ending()
        if self._elsewhere is not None:
            self._end_ranks(self._grace if self._elsewhere.code > 128 else self._failure_grace())
            if self._store is not None and not self._server.running():
                # The ranks here have succeeded: the agent waits for the other hosts', in vain, at this key.
                with contextlib.suppress(RuntimeError):  # the host of the store is gone
                    self._store.set(f"agents/{_name(self.attempt)}/torchelastic/agent/terminal_state/last_member", "")

    def _look_here(self) -> None:
        """Give the ranks a deadline if one of them has failed or hangs."""
        seen, running, now = [rank.seen() for rank in self._board.ranks], len(self._server.running()), time.monotonic()
        if self._all_forked() and running < sum(one.phase != "end" for one in seen):  # the agent asks the others to end
            self._deadline = now + self._failure_grace()
        found = self._hangs.look(seen, now, self._continued)
        if found is not None and not self._hung:
            self._hung = {found.rank: found.seconds}
            with contextlib.suppress(ProcessLookupError):
                os.kill(seen[found.rank].process, signal.SIGKILL)

    def _all_forked(self) -> bool:
        return self._server.forked() == len(self._board.ranks)

    def _failure_grace(self) -> float:
        return FAILURE_GRACE if self._grace is None else min(FAILURE_GRACE, self._grace)

    def _end_ranks(self, grace: float | None) -> None:
        if grace is not None:
            self._deadline = time.monotonic() + grace
        self._send(signal.SIGTERM)  # a rank that is still importing would print a traceback on SIGINT

    def _send(self, number: int) -> None:
        for process in self._server.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _kill(self) -> None:
        """Kill the ranks and their workers; after a signal this process too, if it does not end within half a second."""
        if self._server.running() and self.signal:
            late = self._grace is not None and self._deadline is not None and time.monotonic() > self._deadline
            seconds = f" in {self._grace:g} s" if late else ""
            complain(f"vgg-ddp: the ranks here did not end{seconds}: killed")
        self._killed = True
        for pid in self._server.running():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # each rank is the leader of a session
        if not self.signal and (self._elsewhere is None or self._elsewhere.restart):
            return
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


def _name(attempt: int) -> str:
    return f"ranks {attempt}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
