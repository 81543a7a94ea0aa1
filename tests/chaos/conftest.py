"""The number of tries of each test, and the table of their results."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest


@dataclass
class Tries:
    """The tries of one kind of disturbance, and what went wrong in them.

    Attributes:
        tell: writes a line to the terminal at once, since the whole takes hours.
        figure: what was measured, for the table.
    """

    what: str
    count: int
    rng: random.Random
    tell: Callable[[str], None]
    figure: str = ""
    wrong: list[str] = field(default_factory=list)

    def check(self, right: bool, otherwise: str) -> None:
        """Record and print `otherwise` unless the try ended `right`."""
        if not right:
            self.wrong.append(otherwise)
            self.tell(f"\n{self.what}: {otherwise}")


Begin = Callable[[str, int, int], Tries]
TABLE: list[Tries] = []


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Begin:
    """`tries(what, small, whole)`: that many tries, depending on --chaos; all of them must end well."""
    made: list[Tries] = []

    def begin(what: str, small: int, whole: int) -> Tries:
        count = {"small": small, "whole": whole}[request.config.getoption("--chaos")]
        if not count:
            pytest.skip("tried with --chaos whole alone")
        rng = random.Random(f"{what} {request.config.getoption('--chaos-seed')}")
        made.append(Tries(what, count, rng, tell))
        return made[-1]

    def tell(line: str) -> None:
        with request.getfixturevalue("capfd").disabled():
            print(line, file=sys.stderr, flush=True)

    def end() -> None:
        for tried in made:
            TABLE.append(tried)
            assert not tried.wrong, "\n".join(tried.wrong)

    request.addfinalizer(end)
    return begin


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table if it was asked for."""
    if terminalreporter.config.getoption("--chaos") == "whole" or "chaos" in str(terminalreporter.config.args):
        terminalreporter.section("chaos")
        for tried in TABLE:
            line = f"{tried.what:<56} {tried.count:>6} tries {len(tried.wrong):>4} wrong  {tried.figure}"
            terminalreporter.write_line(line.rstrip())
