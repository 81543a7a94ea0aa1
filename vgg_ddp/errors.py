"""The errors that are shown to the user, and the exit codes of every command."""

from __future__ import annotations

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_LOST_RANK = 1
EXIT_STOPPED = 75  # stopped on request with a checkpoint saved (EX_TEMPFAIL: try again)


class UserError(Exception):
    """An error that the user can correct: one line that says what is wrong, where, and what to do.

    The commands print it without a traceback, once for all ranks, and exit with `EXIT_USER_ERROR`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StoppedOnRequest(Exception):
    """Raised after a signal asked for a stop and a checkpoint was saved; exits with `EXIT_STOPPED`."""
