"""Which rank hangs: one that is stopped for long, or that is for longer in a step, or at its images, than any has been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vgg_ddp.distributed.activity import Seen

SHORTEST = 60.0  # seconds, of a limit that nobody has set
MARGIN = 30.0  # seconds beyond the slowest step


class Hang(NamedTuple):
    """A rank of this host that hangs, and the seconds for which it gave no sign."""

    rank: int
    seconds: float


def is_stopped(process: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


class Hangs:
    """Looks at the ranks of a host again and again.

    Args:
        limit: seconds; None: `MARGIN` beyond the slowest step seen, at least `SHORTEST`.
        stopped: whether a process is stopped.
    """

    def __init__(self, limit: float | None, stopped: Callable[[int], bool] = is_stopped) -> None:
        self._limit, self._stopped = limit, stopped
        self._stopped_since: dict[int, float] = {}
        self._last: dict[int, Seen] = {}
        self._last_look = 0.0
        self._slowest = 0.0

    def look(self, ranks: Sequence[Seen], now: float) -> Hang | None:
        """The rank that hangs, if any has for longer than the limit.

        Args:
            ranks: what each does.
            now: the time on the monotonic clock.
        """
        for rank, one in enumerate(ranks):
            before = self._last.get(rank, one)
            if before.since != one.since and _steady(before):
                self._slowest = max(self._slowest, self._last_look - before.since)
            if one.process and self._stopped(one.process):
                self._stopped_since.setdefault(rank, now)
            else:
                self._stopped_since.pop(rank, None)
        self._last, self._last_look = dict(enumerate(ranks)), now
        limit = self._limit or max(SHORTEST, self._slowest + MARGIN)
        seconds = [self._seconds(rank, one, now) for rank, one in enumerate(ranks)]
        late = [rank for rank in range(len(ranks)) if seconds[rank] > limit]
        if not late:
            return None
        # A stopped one before those that wait for it; else the one that came there first: the others went on to wait for it.
        rank = min(late, key=lambda rank: (rank not in self._stopped_since, ranks[rank].since))
        return Hang(rank, seconds[rank])

    def _seconds(self, rank: int, one: Seen, now: float) -> float:
        stopped = now - self._stopped_since.get(rank, now)
        return max(stopped, now - one.since if _steady(one) else 0.0)


def _steady(one: Seen) -> bool:
    """Whether a rank does what it has done before: a first step compiles, tries and fills caches, as long as that takes."""
    return one.phase in ("fetch", "step") and one.step > one.first_step
