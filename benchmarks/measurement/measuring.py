"""What all benchmarks share: rounds that alternate between the things compared, their statistics, and the file they write.

What else a machine does falls on neighbouring moments alike; so nothing is compared that was not measured in turns, in one
process. The first round is warm-up and does not count.

What compares a run with an earlier one of the same benchmark is in `benchmarks/baseline.py`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from scipy.stats import bootstrap

from benchmarks.measurement import baseline
from vgg_ddp.errors import UserError
from vgg_ddp.training.environment import commit, devices

Rates = dict[str, list[float]]
REFERENCE = "reference"


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


def matrix_product(device: torch.device, seconds: float = 0.2) -> Callable[[], float]:
    """FLOP/s of a large matrix product in bf16, for so long at each call."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    repeat = _repeated(lambda: left @ right, device, seconds)
    return lambda: 2 * size**3 * repeat()


def copy(device: torch.device, seconds: float = 0.2) -> Callable[[], float]:
    """Bytes/s that a copy reads and writes which is larger than the caches, for so long at each call."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    repeat = _repeated(lambda: target.copy_(source), device, seconds)
    return lambda: 2 * source.nbytes * repeat()


def reference(device: torch.device) -> Callable[[], float]:
    """A side for `in_turns`, under the name `REFERENCE`, that belongs to no version of the code: only the machine changes it.

    Rates divided by it can be compared with those of another day. It is the geometric mean of a large matrix product and,
    with a fifth of the weight, a large copy: neighbours on a shared machine take caches and memory as well as cores, and of
    the weights tried (0 to 0.3) a fifth left the least scatter between runs of a training step.
    """
    product, copied = matrix_product(device), copy(device, seconds=0.1)
    return lambda: product() ** 0.8 * copied() ** 0.2


def _repeated(work: Callable[[], Any], device: torch.device, seconds: float) -> Callable[[], float]:
    """How often `work` is done in a second, tried for `seconds`."""

    def rate() -> float:
        start, times = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times += 1
        return times / (time.perf_counter() - start)

    return rate


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A bootstrap interval of the median: its percentiles over resamples (Efron & Tibshirani 1993, section 13.3)."""
    if len(values) < 2 or min(values) == max(values):
        return min(values), max(values)
    found = bootstrap(
        (np.asarray(values),),
        np.median,
        confidence_level=confidence,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summary(
    rates: list[float],
    unit: str = "images_per_second",
    reference: list[float] | None = None,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """Median with its 95 % interval, least and most, and each round's figure.

    Args:
        unit: the median's key in the row.
        reference: what the reference said in the same rounds.
    """
    row: dict[str, Any] = {
        unit: statistics.median(rates),
        "interval": list(median_interval(rates)),
        "least": min(rates),
        "most": max(rates),
        "rounds": len(rates),
        "all": rates,
        "unit": unit,
        "higher_is_better": higher_is_better,
    }
    if reference is not None:
        row["reference"] = reference
    return row


def machine(threads: int) -> dict[str, Any]:
    return {
        "devices": devices(),
        "threads": threads,
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "load_average": os.getloadavg(),
        "date": date.today().isoformat(),
    }


def parser_of(name: str, description: str | None) -> ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--threads", type=int, default=cores(), help="CPU threads (default: all cores)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and pictures beside it")
    baseline.add_options(parser)
    return parser


def exit_after(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark's `main`; a user's mistake is one line and exit code 2."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def write(path: Path | None, name: str, threads: int, rows: list[dict[str, Any]], **more: Any) -> None:
    """The rows with the machine and the command, if a file is asked for; `more` are further keys."""
    if path is not None:
        command = " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])
        contents = {"machine": machine(threads), "command": command, **more, "rows": rows}
        path.write_text(text(contents) + "\n")


def text(value: Any, indent: str = "", width: int = 120) -> str:
    """`value` as JSON that a reader can compare: what fits on a line is on one, and each element of a list on its own."""
    line = json.dumps(value)
    if (
        not isinstance(value, dict | list)
        or len(indent + line) <= width
        or (isinstance(value, list) and _is_flat(value))
    ):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + json.dumps(element) for element in value) + f"\n{indent}]"
    entries = [f"{inner}{json.dumps(str(key))}: {text(entry, inner, width)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _is_flat(value: list[Any]) -> bool:
    return not any(isinstance(element, dict | list) for element in value)
