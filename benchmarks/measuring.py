"""What all benchmarks share: rounds that alternate between the things compared, their statistics, and the file they write.

What else a machine does falls on neighbouring moments alike; so nothing is compared that was not measured in turns, in one
process. The first round is warm-up and does not count.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from vgg_ddp.environment import devices

Rates = dict[str, list[float]]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """What each side says, `rounds` times after a warm-up, the sides taking turns."""
    rates: Rates = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            rate = side()
            if number:
                rates[name].append(rate)
    return rates


def summary(rates: list[float], unit: str = "images_per_second") -> dict[str, Any]:
    """Median, least and most, and each round's figure."""
    return {unit: statistics.median(rates), "least": min(rates), "most": max(rates), "rounds": len(rates), "all": rates}


def machine(threads: int) -> dict[str, Any]:
    return {
        "devices": devices(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def parser_of(name: str, description: str | None) -> ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--threads", type=int, default=cores(), help="CPU threads (default: all cores)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser


def write(path: Path | None, name: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """The rows with the machine and the command, if a file is asked for."""
    if path is not None:
        command = " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])
        contents = {"machine": machine(threads), "command": command, "rows": rows}
        path.write_text(json.dumps(contents, indent=2) + "\n")
