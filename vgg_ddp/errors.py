"""The errors that are shown to the user, and the exit codes of every command."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # each asks to save and end
EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_LOST_RANK = 76  # a rank that lost the connection to another; the launch ends with 1, or restarts all ranks
EXIT_STOPPED = 75  # stopped on request with a checkpoint saved (EX_TEMPFAIL: try again)


def printable(text: str) -> str:
    """`text` for a terminal: passwords masked, control characters (of a file name, say) escaped as in Python."""
    text = re.sub(r"(://?[^/@\s:]+):[^/@\s]+@", r"\1:***@", text)  # the password in an address
    kept = "\n\t\u200c\u200d"  # the last two join letters
    return "".join(
        c if c in kept or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text
    )


DIVERGED = "the training has diverged"
AFTER_DIVERGENCE = (
    f"{DIVERGED}; set resume=auto to go on from the last checkpoint, if there is one, and a smaller "
    "optimizer.learning_rate or optimizer.clip_norm=1"
)


class UserError(Exception):
    """An error that the user can correct: one line that says what is wrong, where, and what to do.

    The commands print it without a traceback, once for all ranks, and exit with `EXIT_USER_ERROR`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class Damaged(UserError):
    """A checkpoint that cannot be used; an older one may be whole."""


class Unwritten(UserError):
    """A checkpoint that cannot be written: no space, no right, no disk any more."""


class Signalled(BaseException):
    """One of `STOP_SIGNALS` came where there is nothing to save; exits with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Inside the context, the first of `STOP_SIGNALS` raises `Signalled`; ignored ones, as under nohup, stay ignored.

    Later ones are ignored, except a second Ctrl-C, which ends the process at once. Outside the main thread signals cannot be
    handled: there they are left to the program around it.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        unheard = [number for number in STOP_SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, _raise)]
        before = {number: signal.signal(number, _raise) for number in unheard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: object) -> None:
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    raise Signalled(number)


class StoppedOnRequest(Exception):
    """Raised after a signal asked for a stop and a checkpoint was saved; exits with `EXIT_STOPPED`."""


def leave(code: int) -> NoReturn:
    """End this process with `code` at once, without Python's own shutdown; all files must be closed by now.

    In that shutdown, once in some dozens of starts, a library's thread that still ran aborted the process, and a rank
    that had done its work ended with a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
