"""Which rank hangs: stopped for long, or longer in one step, one load of images or one evaluation batch than any before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vgg_ddp.distributed.activity import Seen

SHORTEST = 60.0  # seconds, of a limit that nobody has set
MARGIN = 30.0  # seconds beyond the slowest step
EVALUATIONS = ("validate", "evaluate")
LONGEST = 540.0  # seconds, for work without a usual duration: less than the 10 minutes after which waiting ranks fail


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
        self._repeating: set[int] = set()  # ranks that have evaluated a batch
        self._last_look = 0.0
        self._slowest = 0.0

    def look(self, ranks: Sequence[Seen], now: float, continued: float = 0.0) -> Hang | None:
        """The rank that hangs, if any has for longer than the limit.

        Args:
            ranks: what each does.
            now: the time on the monotonic clock.
            continued: when all went on after they had been suspended, if they were.
        """
        for rank, one in enumerate(ranks):
            before = self._last.get(rank, one)
            batch = one.phase == before.phase and one.phase in EVALUATIONS  # the first too: no later one takes longer
            if before.since != one.since and (batch or self._steady(rank, before)):
                self._slowest = max(self._slowest, self._last_look - before.since)
            if before.phase != one.phase:
                self._repeating.discard(rank)
            elif before.since != one.since:
                self._repeating.add(rank)
            if one.process and self._stopped(one.process):
                self._stopped_since.setdefault(rank, now)
            else:
                self._stopped_since.pop(rank, None)
        self._last, self._last_look = dict(enumerate(ranks)), now
        limit = self._limit or max(SHORTEST, self._slowest + MARGIN)
        longest = [self._longest(rank, one, limit) for rank, one in enumerate(ranks)]
        stopped = [now - self._stopped_since.get(rank, now) for rank in range(len(ranks))]
        since = [max(one.since, continued) for one in ranks]
        there = [now - since[rank] if longest[rank] < math.inf else 0.0 for rank in range(len(ranks))]
        late = [rank for rank in range(len(ranks)) if stopped[rank] > limit or there[rank] > longest[rank]]
        if not late:
            return None
        # A stopped rank is named before the ranks that wait for it: they may have arrived before it was stopped, and so be
        # late sooner. Otherwise the one that arrived first: the others went on and wait for it.
        long_stopped = [rank for rank in range(len(ranks)) if stopped[rank] > limit / 2]
        rank = min(long_stopped or late, key=lambda rank: ranks[rank].since)
        return Hang(rank, max(stopped[rank], there[rank]))

    def _longest(self, rank: int, one: Seen, limit: float) -> float:
        """The seconds that a rank may stay at one place; `limit` applies to work whose usual duration is known."""
        if self._steady(rank, one):
            return limit
        return LONGEST if one.phase in ("save", *EVALUATIONS) else math.inf

    def _steady(self, rank: int, one: Seen) -> bool:
        """Whether it repeats work: the first time, compilation, trials and filling caches may take any time."""
        if one.phase in EVALUATIONS:
            return rank in self._repeating
        return one.phase in ("fetch", "step") and one.step > one.first_step
