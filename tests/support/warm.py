"""Imported last by the process that ranks and commands are forked from: does what each would otherwise repeat."""

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.distributed import fork_server
from vgg_ddp.distributed.fork_server import ForkServer
from vgg_ddp.errors import leave
from vgg_ddp.report.rendering import templates
from vgg_ddp.trackers import follow

READ_ON_IMPORT = ("ATEN_", "DNNL_", "MKL_", "OMP_", "ONEDNN_", "PYTHON", "TORCH_")  # variables of the environment


class Server:
    """A process of a `ForkServer`, forked by its supervisor, and used like a `subprocess.Popen`."""

    def __init__(self, run: Callable[[], object]) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else the fork would write it again
        self.returncode: int | None = None
        self._process = os.fork()
        if not self._process:
            try:
                os.setsid()
                run()
            except BaseException:
                sys.excepthook(*sys.exc_info())
            leave(1)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self._process, signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self._process, options)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode


def read_on_import() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_ON_IMPORT)}


def begin(server: ForkServer) -> None:
    """Fork a server's process from this one, unless imports would behave differently in its environment."""
    if read_on_import() != AT_THE_IMPORTS:
        BEGIN_ANEW(server)
        return
    server._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = os.getpid()

    def serve() -> None:
        server._connection.close()
        sys.argv = ["-c", str(supervisor), str(theirs.detach()), server._module]
        fork_server.serve()

    with theirs:
        server._process = Server(serve)  # type: ignore[assignment]


AT_THE_IMPORTS, BEGIN_ANEW = read_on_import(), ForkServer._begin
ForkServer._begin = begin  # type: ignore[method-assign]
msgspec.convert({}, Config)  # evaluates the annotations of every key
follow.SECONDS_BEFORE_THE_END = 300.0  # for trackers on a busy machine; tests of late trackers set finish_seconds
for name in templates().list_templates(["j2"]):
    templates().get_template(name)
gc.freeze()  # shared objects are exempt from garbage collection in the forks
