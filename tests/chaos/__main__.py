"""Kills, signals, full disks and damaged files, at random moments and places, and how a run survives each.

    python -m tests.chaos [--size small|whole] [--seed 0] [--only kills,stop,...]

It prints a table: what was done, how often, and how often the run did not end like an undisturbed one. `small` is what
the suite runs with its fixed seed; `whole` takes some hours on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest


def main() -> int:
    """Run the tests and return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=("small", "whole"), default="whole")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", default="", help="names of tests, or parts of them, divided by commas")
    options = parser.parse_args()
    chosen = ["-k", " or ".join(options.only.split(","))] if options.only else []
    here = str(Path(__file__).parent)
    return int(
        pytest.main([here, "-q", "--durations=0", f"--chaos={options.size}", f"--chaos-seed={options.seed}", *chosen])
    )


if __name__ == "__main__":
    sys.exit(main())
