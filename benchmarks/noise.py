"""The same version against itself: how often a benchmark calls that "noise".

    python -m benchmarks.noise [--runs 21] [--json FILE] BENCHMARK [its options ...]
    python -m benchmarks.noise scaling --parts measure --ranks 1 --batch 16

Runs BENCHMARK so many times, each in a process of its own, and gives every run's verdict against one stored run (the one
before it) and against three (the three before it). Verdicts on the same code that say "faster" or "slower" are wrong; one in
twenty is what the interval allows.

Also said: how far runs scatter, as a standard deviation, with and without the reference that is measured beside them. The
one with it is what `--between-runs` takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.measurement import baseline, measuring
from vgg_ddp.errors import UserError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def run(benchmark: str, options: Sequence[str], file: Path) -> list[Row]:
    """The rows of one run in a fresh process.

    Raises:
        UserError: it failed, or its rows do not hold each round's figure.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *options, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{benchmark} ended with {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    rows = [row for row in json.loads(file.read_text())["rows"] if "all" in row]
    if not rows:
        raise UserError(f"{benchmark} writes no row with each round's figure")
    return rows


def words(runs: Sequence[Sequence[Row]], baselines: int, between_runs: float) -> Counter[str]:
    """The verdicts of each run against the `baselines` before it, over all rows."""
    found: Counter[str] = Counter()
    for number in range(baselines, len(runs)):
        for row in runs[number]:
            before = [next(r for r in run if r["name"] == row["name"]) for run in runs[number - baselines : number]]
            found[baseline.verdict(row, before, between_runs).word] += 1
    return found


def scatter(runs: Sequence[Sequence[Row]], with_reference: bool) -> float:
    """Relative standard deviation of the runs' medians, the mean over rows."""
    spreads = []
    for row in runs[0]:
        same = [next(r for r in run if r["name"] == row["name"]) for run in runs]
        spreads.append(statistics.stdev(statistics.median(baseline.logarithms(r, with_reference)) for r in same))
    return math.expm1(statistics.mean(spreads))


def draw(runs: Sequence[Sequence[Row]], path: Path) -> None:
    """Each run's median of the first row, with its interval, as it is and over the reference."""
    figure, panels = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    for axes, with_reference in zip(panels, (False, True)):
        if with_reference and "reference" not in runs[0][0]:
            continue
        series = [baseline.logarithms(run[0], with_reference) for run in runs]
        centre = statistics.mean(statistics.median(values) for values in series)
        for number, values in enumerate(series):
            low, high = (math.exp(end - centre) for end in measuring.median_interval(values))
            axes.plot([number, number], [low, high], color="#0072B2")
            axes.plot(number, math.exp(statistics.median(values) - centre), "o", color="#0072B2", markersize=4)
        axes.set_ylabel("over the reference" if with_reference else "as measured")
        axes.grid(alpha=0.3)
    panels[0].set_title(f"{runs[0][0]['name']}: medians of the same version, relative to their mean", fontsize=9)
    panels[1].set_xlabel("run")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=21, help="runs of the benchmark, 4 or more (default: 21)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and a picture beside it")
    parser.add_argument(
        "--between-runs",
        type=float,
        default=baseline.BETWEEN_RUNS,
        help="as the benchmarks take it (default: %(default)s)",
    )
    parser.add_argument("benchmark", help="e.g. scaling, loaders")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's options")
    options = parser.parse_args()
    runs: list[list[Row]] = []
    if options.runs < 4:
        raise UserError(f"--runs {options.runs}: 4 or more are needed")
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.runs):
            runs.append(run(options.benchmark, options.options, Path(place) / "run.json"))
            first = runs[-1][0]
            print(f"run {number + 1:>3}  {first['name']}: {first[first['unit']]:.5g} {first['unit']}", flush=True)
    rows = []
    for baselines in (1, 3):
        found = words(runs, baselines, options.between_runs)
        share = found["noise"] / found.total()
        rows.append({"name": f"against {baselines} stored", "verdicts": found.total(), **found, "noise_share": share})
        print(
            f"against {baselines} stored: {found['noise']} of {found.total()} verdicts are noise ({share:.1%}), "
            f"{found['faster']} faster, {found['slower']} slower"
        )
    scatters = {"scatter_as_measured": scatter(runs, False)}
    if all("reference" in row for row in runs[0]):
        scatters["scatter_over_reference"] = scatter(runs, True)
    for name, value in scatters.items():
        print(f"{name.replace('_', ' ')}: {value:.2%} between runs")
    measuring.write(options.json, "noise", measuring.cores(), rows, **scatters, runs=runs)
    if options.json:
        draw(runs, options.json.with_suffix(".png"))


if __name__ == "__main__":
    measuring.exit_after(main)
