"""What the end of a host's ranks means: a stop, a mistake of the user's, or a failure after which all ranks start again."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import msgspec

from vgg_ddp.distributed.activity import Seen, stopped, where
from vgg_ddp.errors import EXIT_LOST_RANK, EXIT_STOPPED, EXIT_USER_ERROR, STOP_SIGNALS

FAILED = "failed with exit code"  # what is told of a rank whose own traceback says why
RETURNED_CODES = (EXIT_USER_ERROR, EXIT_STOPPED)  # exit codes of ranks that a launch ends with too
_STOP_CODES = {code: number for number in STOP_SIGNALS for code in (128 + number, -number)}


class Ending(msgspec.Struct, frozen=True):
    """How the ranks of all hosts ended, as reported by the host that noticed it first.

    Attributes:
        code: the exit code of the launch, unless the ranks start again.
        text: the message to print; "": a rank has printed its own.
        restart: the number of the restart that follows; 0: none.
        step: how far the ranks had come.
    """

    code: int
    text: str = ""
    restart: int = 0
    step: int = 0


@dataclass
class Restarts:
    """How often in a row all ranks may start again without getting further than before.

    Attributes:
        allowed: the key `restarts`.
        alone: whether there is one rank.
        count: how many restarts there were since the ranks last got further.
        furthest: the furthest step that they have reached.
    """

    allowed: int
    alone: bool = False
    count: int = 0
    furthest: int = -1

    def note(self, ending: Ending) -> None:
        """Take in what the host that noticed it has decided."""
        self.count, self.furthest = ending.restart, max(self.furthest, ending.step)

    def judge(
        self,
        codes: dict[int, int],
        seen: dict[int, Seen],
        hung: dict[int, float],
        asked: int = 0,
        killed: bool = False,
    ) -> Ending:
        """What follows from the exit codes of ranks (negative: by that signal).

        Args:
            codes, seen: the exit codes of those that did not end well, and what all ranks of this host did last, by rank.
            hung: seconds that ranks gave no sign before they were killed for it.
            asked: the signal that the launch got, which then does not start again; 0: none.
            killed: whether ranks that did not end after another had failed were killed.
        """
        step = max((one.step for one in seen.values()), default=0)
        returned = [code for code in RETURNED_CODES if code in codes.values()]
        if returned:
            return Ending(returned[0], step=step)
        by_us = {rank for rank, code in codes.items() if killed and code == -signal.SIGKILL and rank not in hung}
        hard = {rank: c for rank, c in codes.items() if c not in (*_STOP_CODES, EXIT_LOST_RANK) and rank not in by_us}
        stops = [_STOP_CODES[code] for code in codes.values() if code in _STOP_CODES]
        if stops and not hard:
            number = asked or stops[0]
            return Ending(128 + number, stopped(number, min(seen.items())[1].phase), step=step)
        if asked:
            return Ending(128 + asked if killed and not hard else 1, step=step)
        rank = min(hard or codes, key=lambda rank: (rank not in hung, codes[rank] >= 0, rank))
        return self._after(_what(rank, codes[rank], seen[rank], hung.get(rank)), codes[rank], seen[rank], step)

    def _after(self, what: str, code: int, last: Seen, step: int) -> Ending:
        count = 0 if step > self.furthest else self.count
        if not self.allowed:
            return Ending(1, what, step=step)
        if code > 0 and last.step == last.first_step and last.phase in ("start", "fetch", "step"):
            return Ending(1, f"{what}, before it had taken a step: not tried again", step=step)
        if count == self.allowed:
            return Ending(1, f"{what}, again: no step further in {count} restarts", step=step)
        count += 1
        who = "it starts" if self.alone else "all ranks start"
        again = f"{who} again from the newest checkpoint (restart {count} of {self.allowed})"
        return Ending(1, f"{what}; {again}", count, step)


def _what(rank: int, code: int, seen: Seen, seconds: float | None) -> str:
    if seconds is not None:
        what = f"gave no sign for {seconds:.0f} s"
    elif code == EXIT_LOST_RANK:
        what = "lost the connection to another"
    else:
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"{FAILED} {code}"
    return f"rank {rank} {what} {where(seen)}"
