"""A fault in one rank of a launch, at a moment that a test names.

Python imports a module of this name from PYTHONPATH when it starts, before anything else: so the process that ranks are
forked from carries the fault, which strikes one of them, and the package knows nothing of it.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

VARIABLE = "FAULT"  # in the environment: JSON of rank, phase, step and what
PHASES = (
    "start",
    "fetch",
    "forward",
    "backward",
    "optimizer",
    "save",
    "write",
    "rename",
    "validate",
    "evaluate",
    "report",
)
LAST = "vgg_ddp.training.job"  # once it is imported, everything that a fault is injected into exists


class Fault:
    """A fault that strikes once, in the first launch of the ranks.

    Args:
        rank: the rank that it strikes.
        phase: one of `PHASES`.
        step: the number of steps before it.
        what: a signal's name, `exception`, `memory`, `nan`, `full` or `link`.
    """

    def __init__(self, rank: int, phase: str, step: int, what: str) -> None:
        self.rank, self.phase, self.step, self.what = rank, phase, step, what

    def here(self) -> bool:
        """Whether this process is the one to strike."""
        return os.environ.get("RANK") == str(self.rank) and os.environ.get("VGG_DDP_RESTARTS", "0") == "0"

    def strike(self) -> None:
        """Let the fault happen in this process."""
        self.phase = ""  # once
        if self.what == "exception":
            raise ValueError("a bug")
        if self.what == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        if self.what == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.what == "link":
            cut_connections()
        else:
            os.kill(os.getpid(), signal.Signals[f"SIG{self.what}"])


def cut_connections() -> None:
    """Shut down the connections to other ranks: like a pulled cable, but noticed at once."""
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(name)))
            if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6):
                copy.getpeername()
                copy.shutdown(socket.SHUT_RDWR)
            copy.close()
        except OSError:
            continue


def put_in(fault: Fault) -> None:
    """Inject the fault where it is to strike; every module of the training is imported by now."""
    from vgg_ddp.distributed.activity import Activity
    from vgg_ddp.engines.ddp import DdpEngine
    from vgg_ddp.run import checkpoint

    seen: list[Activity] = []

    def at(phase: str) -> None:
        step = seen[-1].seen().step if seen else 0
        if phase == fault.phase and fault.here() and (step >= fault.step or phase in ("start", "evaluate", "report")):
            fault.strike()

    enter = Activity.enter

    def enter_and_strike(self: Activity, phase: Any, *arguments: Any, **named: Any) -> None:
        enter(self, phase, *arguments, **named)
        seen[:] = [self]
        at(phase)

    def before(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def striking(*arguments: Any, **named: Any) -> Any:
            at(phase)
            return function(*arguments, **named)

        return striking

    def not_a_number(function: Callable[..., Any]) -> Callable[..., Any]:
        def striking(*arguments: Any, **named: Any) -> Any:
            loss, logits = function(*arguments, **named)
            if fault.phase == "forward" and fault.here() and seen[-1].seen().step >= fault.step:
                fault.phase = ""
                loss = loss * float("nan")
            return loss, logits

        return striking

    Activity.enter = enter_and_strike  # type: ignore[method-assign]
    DdpEngine.forward = (not_a_number if fault.what == "nan" else lambda f: before("forward", f))(DdpEngine.forward)  # type: ignore[method-assign]
    DdpEngine.backward = before("backward", DdpEngine.backward)  # type: ignore[method-assign]
    DdpEngine.step = before("optimizer", DdpEngine.step)  # type: ignore[method-assign]
    checkpoint.write_durably = before("write", checkpoint.write_durably)
    checkpoint.sync_directory = before("rename", checkpoint.sync_directory)


class AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Calls `then` once the module `LAST` is imported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != LAST:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        assert found is not None and found.loader is not None
        self._loader = found.loader
        found.loader = self
        return found

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._then()


if VARIABLE in os.environ:
    _fault = Fault(**json.loads(os.environ[VARIABLE]))
    sys.meta_path.insert(0, AfterImport(lambda: put_in(_fault)))
