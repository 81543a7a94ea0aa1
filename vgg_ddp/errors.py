"""The errors that are shown to the user, and the exit codes of every command."""

from __future__ import annotations

import re
import signal
import unicodedata

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # each asks to save and end

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_LOST_RANK = 1
EXIT_STOPPED = 75  # stopped on request with a checkpoint saved (EX_TEMPFAIL: try again)


def printable(text: str) -> str:
    """`text` for a terminal: without passwords, and with control characters, of a file's name say, as Python writes them."""
    text = re.sub(r"(://?[^/@\s:]+):[^/@\s]+@", r"\1:***@", text)  # the password in an address
    kept = "\n\t\u200c\u200d"  # the last two join letters
    return "".join(
        c if c in kept or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text
    )


class UserError(Exception):
    """An error that the user can correct: one line that says what is wrong, where, and what to do.

    The commands print it without a traceback, once for all ranks, and exit with `EXIT_USER_ERROR`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class Damaged(UserError):
    """A checkpoint that cannot be used; an older one may be whole."""


class StoppedOnRequest(Exception):
    """Raised after a signal asked for a stop and a checkpoint was saved; exits with `EXIT_STOPPED`."""
