"""Where a supervisor's ranks come from: a process that has imported what they run, and is forked once for each.

Importing torch takes seconds of a core: ranks forked from one process pay for it once, and restarted ranks not at all. The
server only imports: it initialises no GPU and runs no threads, as neither survives a fork (OpenBLAS handles its own).

That process runs `serve`, with the arguments PID (the supervisor's), SOCKET and MODULE.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import msgspec

from vgg_ddp.distributed import parent
from vgg_ddp.distributed.activity import Activity
from vgg_ddp.errors import STOP_SIGNALS, Signalled, leave, signals_raise

LATER = ("torch._dynamo", "vgg_ddp.report.live")  # what trainings import by themselves, after their start
LONGEST = 2**17  # bytes of a message


class _Order(msgspec.Struct):
    """To the server: a rank, with more variables in its environment, that runs `main(arguments)` of the module."""

    environment: dict[str, str]
    arguments: list[str]


class _Told(msgspec.Struct):
    """From the server: a rank has been forked, or has ended with a code (negative: by that signal)."""

    process: int
    code: int | None = None


@dataclass
class Rank:
    """A forked process: its id, and its exit code (negative: by that signal) once it has ended."""

    process: int
    code: int | None = None


class ForkServer:
    """A server, and the ranks forked from it since `ranks` was cleared, by local rank.

    At the end of its context, the server and all of its ranks are killed.

    Args:
        module: what ranks run: it has a `main(arguments)` that returns the exit code.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self.ranks: list[Rank] = []
        self._begin()

    def _begin(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # With this process's path: python -m would look into the current directory first, whatever lies there.
            program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
            command = [sys.executable, "-c", program, str(os.getpid()), str(theirs.fileno()), self._module]
            # In a session of its own: what a terminal sends to all processes is for the supervisor to pass on.
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.kill()  # the kernel kills its ranks
        self._process.wait()

    def fork(self, environment: dict[str, str], arguments: list[str]) -> Rank:
        """One more rank, the leader of a session, with these variables in its environment."""
        self.hear()
        if self._process.poll() is not None:
            self._connection.close()
            self._begin()
        rank = Rank(0)
        self.ranks.append(rank)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is heard below
            self._connection.send(msgspec.json.encode(_Order(environment, arguments)))
        while not rank.process and rank.code is None:
            self._hear_one()
        return rank

    def run_alone(self, environment: dict[str, str], arguments: list[str]) -> dict[int, int]:
        """Run a single rank; its exit code, by rank (0), if it failed."""
        own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        rank = self.fork(own | environment, arguments)
        while rank.code is None:
            self._hear_one()
        return {0: rank.code} if rank.code else {}

    def hear(self) -> None:
        """Take in what the server has told."""
        while self._process.returncode is None and select.select([self._connection], [], [], 0.0)[0]:
            self._hear_one()

    def forked(self) -> int:
        """How many ranks have been forked, including those that have ended."""
        return sum(rank.process != 0 or rank.code is not None for rank in self.ranks)

    def running(self) -> list[int]:
        """The process ids of the ranks that have not ended, as far as the messages read so far tell."""
        return [rank.process for rank in self.ranks if rank.code is None and rank.process]

    def _hear_one(self) -> None:
        try:
            message = self._connection.recv(LONGEST)
        except ConnectionResetError:
            message = b""
        if not message:  # it was killed, and its ranks by the kernel
            self._process.wait()
            for rank in self.ranks:
                rank.code = -signal.SIGKILL if rank.code is None else rank.code
            return
        told = msgspec.json.decode(message, type=_Told)
        if told.code is None:
            self.ranks[-1].process = told.process
        for rank in self.ranks:
            if rank.process == told.process:
                rank.code = told.code


def _serve(connection: socket.socket, module: str) -> None:
    """Fork ranks and tell of their ends, until the supervisor hangs up."""
    server = os.getpid()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # else it does not wake
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, LONGEST)
            _tell_of_ends(connection)
        if connection.fileno() in ready:
            message = connection.recv(LONGEST)
            if not message:
                return
            process = os.fork()
            if not process:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (woken, wake, connection.detach()):
                    os.close(descriptor)
                _be_rank(msgspec.json.decode(message, type=_Order), module, server)
            connection.send(msgspec.json.encode(_Told(process)))


def _tell_of_ends(connection: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):  # there is none left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            process, status = ended
            connection.send(msgspec.json.encode(_Told(process, os.waitstatus_to_exitcode(status))))


def _be_rank(order: _Order, module: str, server: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        parent.end_with(server)
        os.environ.update(order.environment)
        Activity.of_rank()
        with signals_raise():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            imported = importlib.import_module(module)
            sys.argv = [str(imported.__file__), *order.arguments]  # for the record of what was started
            code = imported.main(order.arguments)
    except Signalled as signalled:
        code = signalled.exit_code  # the supervisor says so
    except BaseException:
        sys.excepthook(*sys.exc_info())
    leave(code)


def serve() -> NoReturn:
    """Be the server that `sys.argv` describes."""
    pid, descriptor, module = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # meant for the ranks, which must not lose one
    parent.end_with(int(pid))
    warnings.filterwarnings(
        "ignore", "This process .* is multi-threaded", DeprecationWarning
    )  # by OpenBLAS; Python 3.12
    with contextlib.suppress(Exception):  # the ranks meet it too, and say so
        importlib.import_module(module)
        for name in LATER if "torch" in sys.modules else ():
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the ranks' garbage collectors leave these objects, and their memory stays shared
    with socket.socket(fileno=int(descriptor)) as connection:
        _serve(connection, module)
    leave(0)
