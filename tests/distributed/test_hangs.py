"""Which rank is taken for hanging, and when."""

from __future__ import annotations

import math

import pytest

from vgg_ddp.distributed.activity import Phase, Seen
from vgg_ddp.distributed.hangs import LONGEST, MARGIN, SHORTEST, Hang, Hangs


def rank(phase: Phase, step: int, since: float, process: int = 1, first_step: int = 0) -> Seen:
    return Seen(process, phase, first_step, step, since)


def test_a_rank_that_is_stopped_is_named_before_those_that_wait_for_it() -> None:
    hangs = Hangs(5.0, stopped=lambda process: process == 2)
    ranks = [rank("step", 7, since=99.0, process=1), rank("step", 7, since=99.5, process=2)]
    assert [hangs.look(ranks, now) for now in (100.0, 103.0)] == [None, None]
    assert hangs.look(ranks, 105.1) == Hang(1, 105.1 - 99.5)


def test_a_rank_that_is_stopped_is_named_though_one_that_waits_for_it_is_late_first() -> None:
    hangs = Hangs(5.0, stopped=lambda process: process == 2)
    ranks = [rank("step", 7, 99.5, 1), rank("step", 7, 99.9, 2)]
    assert hangs.look(ranks, 100.0) is None
    assert hangs.look(ranks, 104.6) == (1, pytest.approx(4.7))  # the first is late; the second was stopped 4.6 s ago


def test_a_rank_may_be_stopped_for_long_in_any_phase_until_the_limit() -> None:
    hangs = Hangs(5.0, stopped=lambda process: True)
    starting = [rank("start", 0, since=0.0)]
    assert [hangs.look(starting, now) for now in (100.0, 105.0)] == [None, None]
    assert hangs.look(starting, 105.5) == Hang(0, 5.5)


def test_of_those_that_are_all_late_it_is_the_one_that_stayed_behind() -> None:
    """It fetches images; the other went on into the step, where it waits."""
    hangs = Hangs(5.0, stopped=lambda process: False)
    assert hangs.look([rank("step", 7, since=11.0), rank("fetch", 7, since=10.0)], 16.5) == Hang(1, 6.5)


def test_what_takes_long_by_nature_is_no_hang() -> None:
    """The first step compiles; a start and a report have no usual time."""
    hangs = Hangs(5.0, stopped=lambda process: False)
    first = [rank("step", 20, since=0.0, first_step=20)]
    others = [rank(phase, 30, since=0.0) for phase in ("start", "report", "end")]
    assert hangs.look(first + others, 1e6) is None


@pytest.mark.parametrize("phase", ["save", "validate", "evaluate"])
def test_what_others_wait_for_may_take_long_but_not_longer_than_they_wait(phase: Phase) -> None:
    hangs = Hangs(5.0, stopped=lambda process: False)
    ranks = [rank(phase, 30, since=math.inf), rank(phase, 30, since=0.0)]
    assert [hangs.look(ranks, now) for now in (1.0, LONGEST)] == [None, None]
    assert hangs.look(ranks, LONGEST + 1) == Hang(1, LONGEST + 1)


def test_a_batch_of_an_evaluation_takes_as_long_as_others() -> None:
    hangs = Hangs(5.0, stopped=lambda process: False)
    assert hangs.look([rank("evaluate", 30, since=1.0)], 2.0) is None
    assert hangs.look([rank("evaluate", 30, since=3.0)], 7.9) is None
    assert hangs.look([rank("evaluate", 30, since=3.0)], 8.1) is not None
    assert hangs.look([rank("save", 30, since=3.0)], 8.2) is None


def test_the_limit_by_itself_is_well_beyond_the_slowest_step() -> None:
    hangs = Hangs(None, stopped=lambda process: False)
    for now in (100.0, 140.0, 199.9):  # a step of 100 s
        assert hangs.look([rank("step", 1, since=140.0 if now > 140 else 100.0)], now) is None
    assert hangs.look([rank("step", 2, since=200.0)], 200.1) is None
    assert hangs.look([rank("step", 2, since=200.0)], 200.0 + max(SHORTEST, 59.9 + MARGIN) - 0.1) is None
    assert hangs.look([rank("step", 2, since=200.0)], 200.0 + max(SHORTEST, 59.9 + MARGIN) + 0.1) is not None


def test_an_evaluation_whose_batches_are_all_slow_is_no_hang() -> None:
    """In a process that only evaluates, and so has timed no step."""
    hangs = Hangs(None, stopped=lambda process: False)
    looks = [(batch * 80.0, batch * 80.0 + seconds) for batch in range(5) for seconds in (0.1, 40.0, 79.9)]
    assert all(hangs.look([rank("evaluate", 0, since)], now) is None for since, now in looks)
    assert hangs.look([rank("evaluate", 0, since=400.0)], 400.0 + 80.0 + MARGIN) is not None


def test_seconds_before_all_went_on_again_do_not_count() -> None:
    hangs = Hangs(5.0, stopped=lambda process: False)
    stepping = [rank("step", 7, since=10.0)]
    assert hangs.look(stepping, 11.0) is None
    assert hangs.look(stepping, 104.9, continued=100.0) is None
    assert hangs.look(stepping, 105.1, continued=100.0) == Hang(0, pytest.approx(5.1))


def test_a_pause_in_the_first_batch_of_an_evaluation_makes_it_no_second() -> None:
    hangs = Hangs(5.0, stopped=lambda process: False)
    assert [hangs.look([rank("validate", 7, since=10.0)], now, 20.0) for now in (11.0, 25.1, 300.0)] == [None] * 3
