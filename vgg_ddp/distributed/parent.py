"""Has a process end with the one that started it, which may be killed before it can end anything itself.

As a program, `python -m vgg_ddp.distributed.parent PID MODULE ARGUMENTS`, it does so for a rank that the process PID started,
and then runs the rank's module: torch takes seconds to import, in which a rank must neither outlive its supervisor nor be
deaf to a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

from vgg_ddp.distributed.activity import Activity
from vgg_ddp.errors import Signalled, signals_raise

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; end at once if that is not `parent` any more."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def command(module: str, arguments: list[str]) -> list[str]:
    """What this process starts to have `module` run with `arguments` no longer than itself."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


if __name__ == "__main__":
    _, pid, module, *sys.argv[1:] = sys.argv
    end_with(int(pid))
    Activity.of_rank()
    with signals_raise():
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Signalled as signalled:
            os._exit(signalled.exit_code)  # the supervisor says so
