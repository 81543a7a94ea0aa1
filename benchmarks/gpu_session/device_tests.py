"""The tests in tests/gpu, and their outcomes.

python -m benchmarks.gpu_session.device_tests [--rehearsal] [--json FILE]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.measurement import command
from vgg_ddp.errors import UserError

TESTS = Path(__file__).resolve().parents[2] / "tests" / "gpu"


class Outcomes:
    """Collects a row for each test, as a plugin of pytest."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test passes in its call; it is skipped or fails in any phase."""
        if report.when == "call" or not report.passed:
            reason = ""
            if isinstance(report.longrepr, tuple):
                reason = report.longrepr[2]
            elif report.longrepr is not None:
                reason = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)
            row = {
                "name": report.nodeid.removeprefix("tests/gpu/"),
                "outcome": report.outcome,
                "seconds": report.duration,
            }
            self.rows.append({**row, "reason": reason} if reason else row)


def main() -> None:
    """Run them; failures are rows as well.

    Raises:
        UserError: pytest could not run them.
    """
    parser = command.parser("gpu_session.device_tests", __doc__, threads=1)
    parser.add_argument("--rehearsal", action="store_true", help="on the CPU where there is no GPU")
    options = parser.parse_args()
    outcomes = Outcomes()
    # A library's warnings on this machine belong in the log: as errors they would hide what the tests say.
    words = [str(TESTS), "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "default"]
    code = pytest.main([*words, *(["--gpu-rehearsal"] if options.rehearsal else [])], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise UserError(f"pytest ended with {code!r}")
    command.write(options, outcomes.rows)


if __name__ == "__main__":
    command.run(main)
