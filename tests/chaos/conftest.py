"""How much of each is done, and the table of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

TABLE: list[tuple[str, int, list[str]]] = []


@dataclass
class Tries:
    """What is tried, and what went wrong in it."""

    what: str
    count: int
    rng: random.Random
    wrong: list[str] = field(default_factory=list)

    def check(self, right: bool, otherwise: str) -> None:
        """Note a try, which may not have ended as it should have."""
        if not right:
            self.wrong.append(otherwise)
            print(f"\n{self.what}: {otherwise}", file=sys.__stderr__, flush=True)  # whole, it takes hours


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Callable[[str, int, int], Tries]:
    """`tries(what, small, whole)`: so many tries of it, which are all to end well."""
    made: list[Tries] = []

    def begin(what: str, small: int, whole: int) -> Tries:
        count = {"small": small, "whole": whole}[request.config.getoption("--chaos")]
        made.append(Tries(what, count, random.Random(f"{what} {request.config.getoption('--chaos-seed')}")))
        return made[-1]

    def end() -> None:
        for tried in made:
            TABLE.append((tried.what, tried.count, tried.wrong))
            assert not tried.wrong, "\n".join(tried.wrong)

    request.addfinalizer(end)
    return begin


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, where it was asked for."""
    if terminalreporter.config.getoption("--chaos") == "whole" or "chaos" in str(terminalreporter.config.args):
        terminalreporter.section("chaos")
        for what, count, wrong in TABLE:
            terminalreporter.write_line(f"{what:<56} {count:>6} tries {len(wrong):>4} wrong")
