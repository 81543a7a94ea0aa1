"""How often a benchmark's verdict is "noise" when a version is compared with itself.

    python -m benchmarks.noise [--runs 21] [--json FILE] BENCHMARK [its options ...]
    python -m benchmarks.noise scaling --parts measure --ranks 1 --batch 16

Runs BENCHMARK --runs times, each in a process of its own, and gives every run's verdict against one stored run (the one
before it) and against three (the three before it). Verdicts on the same code that say "faster" or "slower" are wrong; the
interval allows one in twenty.

It also prints the scatter between runs, as a standard deviation, with and without division by the reference measured
beside them. The figure with division is the value for `--between-runs`.
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

from benchmarks.measurement import baseline, command
from benchmarks.measurement.rounds import median_interval
from vgg_ddp import cores
from vgg_ddp.errors import UserError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def run(benchmark: str, options: Sequence[str], file: Path) -> list[Row]:
    """The rows of one run in a fresh process.

    Raises:
        UserError: it failed, or its rows do not hold each round's figure.
    """
    start = [sys.executable, "-m", f"benchmarks.{benchmark}", *options, "--json", str(file)]
    done = subprocess.run(start, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{benchmark} ended with {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    rows = [row for row in json.loads(file.read_text())["rows"] if "all" in row]
    if not rows:
        raise UserError(f"{benchmark} writes no row with each round's figure")
    return rows


def verdict_counts(runs: Sequence[Sequence[Row]], baselines: int, between_runs: float) -> Counter[str]:
    """The verdicts of each run against the `baselines` before it, over all rows."""
    counts: Counter[str] = Counter()
    for number in range(baselines, len(runs)):
        for row in runs[number]:
            before = [next(r for r in run if r["name"] == row["name"]) for run in runs[number - baselines : number]]
            counts[baseline.verdict(row, before, between_runs).word] += 1
    return counts


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
            low, high = (math.exp(end - centre) for end in median_interval(values))
            axes.plot([number, number], [low, high], color="#0072B2")
            axes.plot(number, math.exp(statistics.median(values) - centre), "o", color="#0072B2", markersize=4)
        axes.set_ylabel("over the reference" if with_reference else "as measured")
        axes.grid(alpha=0.3)
    panels[0].set_title(f"{runs[0][0]['name']}: medians of the same version, relative to their mean", fontsize=9)
    panels[1].set_xlabel("run")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(options: argparse.Namespace) -> tuple[list[list[Row]], list[Row]]:
    """The rows of every run, and a row of verdict counts for each number of stored runs.

    Raises:
        UserError: too few runs, or one that fails.
    """
    if options.runs < 4:
        raise UserError(f"--runs {options.runs}: 4 or more are needed")
    runs = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.runs):
            runs.append(run(options.benchmark, options.options, Path(place) / "run.json"))
            first = runs[-1][0]
            print(f"run {number + 1:>3}  {first['name']}: {first[first['unit']]:.5g} {first['unit']}", flush=True)
    rows = []
    for baselines in (1, 3):
        counts = verdict_counts(runs, baselines, options.between_runs)
        total = counts.total()
        share = counts["noise"] / total
        rows.append({"name": f"against {baselines} stored", "verdicts": total, **counts, "noise_share": share})
    return runs, rows


def show(rows: list[Row], scatters: dict[str, float]) -> None:
    """Print the verdict counts, and how far the runs scatter."""
    for row in rows:
        print(
            f"{row['name']}: {row.get('noise', 0)} of {row['verdicts']} verdicts are noise ({row['noise_share']:.1%}), "
            f"{row.get('faster', 0)} faster, {row.get('slower', 0)} slower"
        )
    for name, value in scatters.items():
        print(f"{name.replace('_', ' ')}: {value:.2%} between runs")


def main() -> None:
    """Measure, print and keep the rows."""
    prog = "python -m benchmarks.noise"
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=prog, threads=cores.usable())
    parser.add_argument("--runs", type=int, default=21, help="runs of the benchmark, 4 or more (default: 21)")
    parser.add_argument("--json", type=command.result_file, help="write the rows to this file, and a picture beside it")
    parser.add_argument(
        "--between-runs", type=float, default=baseline.BETWEEN_RUNS, help="see the benchmarks (default: %(default)s)"
    )
    parser.add_argument("benchmark", help="e.g. scaling, loaders")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's options")
    options = parser.parse_args()
    runs, rows = measure(options)
    scatters = {"scatter_as_measured": scatter(runs, False)}
    if all("reference" in row for row in runs[0]):
        scatters["scatter_over_reference"] = scatter(runs, True)
    show(rows, scatters)
    command.write(options, rows, **scatters, runs=runs)
    if options.json:
        draw(runs, options.json.with_suffix(".png"))


if __name__ == "__main__":
    command.run(main)
