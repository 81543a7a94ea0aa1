"""Whether a run of a benchmark is faster or slower than stored runs of it, or whether the difference is noise.

What is compared is the logarithm of each row's median over its rounds. Where both runs have measured the reference
(`device_speed.reference`, in the same turns), each round's rate is divided by it first, so that what slows the whole
machine for a while cancels out. Shares (`SHARES`) are not divided: the machine's speed does not change them.

A difference counts only where it is larger than what the same version shows against itself in 19 of 20 comparisons. Two
things make up that margin. Rounds scatter within a run: the standard error of the median, by bootstrap. And whole runs
differ (addresses, neighbours, clock, temperature), which no number of rounds reveals: `--between-runs`, or more where
three or more stored runs lie further apart. `benchmarks.noise` measures it.
"""

from __future__ import annotations

import json
import math
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap, t

from vgg_ddp.errors import UserError

# Standard deviation of a training step's rate over the reference's, 21 runs each on a machine that others were using too:
# 4.4 and 4.8 % in two series, 1.8 and 2.4 % of them without the two runs that were disturbed most.
BETWEEN_RUNS = 0.045
CONFIDENCE = 0.95
SHARES = ("overhead", "efficiency")  # dimensionless units, which are not divided by the reference
# Keys of a row that say what was measured, not the result: only rows that agree in them are compared.
SETTINGS = (
    *("network", "precision", "image_size", "batch", "layout", "compile", "engine", "recompute", "fused"),
    *("world_size", "ranks", "threads", "choice", "head", "link", "loader", "storage", "size", "recipe", "target"),
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The comparison of one row.

    Attributes:
        word: "faster", "slower" or "noise".
        change: relative, above 0 is better: 0.1 is 10 % more images per second, or 10 % fewer seconds.
        margin: the change that the same version may show, relative.
        reference: whether rates were divided by the reference's; None of a share.
    """

    name: str
    word: str
    change: float
    margin: float
    baselines: int
    reference: bool | None


def logarithms(row: Row, with_reference: bool) -> list[float]:
    """The logarithm of each round's figure, over the reference's if asked; larger is better."""
    values = np.log(np.asarray(row["all"], dtype=float))
    if not row.get("higher_is_better", True):
        values = -values
    if with_reference:
        values = values - np.log(np.asarray(row["reference"], dtype=float))
    return [float(value) for value in values]


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the median, by bootstrap; 0 for a single value, which says nothing about it.

    Disturbed rounds tend to follow one another, and so carry less information than as many independent ones. So the
    error is enlarged by sqrt((1 + r) / (1 - r)) for a correlation of r between neighbours, as for a first-order
    autoregression (e.g. Box, Jenkins & Reinsel 2008, section 2.1).
    """
    if len(values) < 2 or min(values) == max(values):
        return 0.0
    generator = np.random.default_rng(0)
    error = bootstrap(
        (np.asarray(values),), np.median, n_resamples=1000, method="percentile", rng=generator
    ).standard_error
    offsets = np.asarray(values) - np.median(values)
    correlation = float(np.clip((offsets[1:] * offsets[:-1]).sum() / (offsets**2).sum(), 0.0, 0.9))
    return float(error) * math.sqrt((1 + correlation) / (1 - correlation))


def margin_of(now: Sequence[float], before: Sequence[Sequence[float]], between_runs: float) -> float:
    """How far apart the same version's medians may lie, in logarithms.

    Two variances, within and between runs, of which the first is estimated from the rounds: Student's t with the degrees of
    freedom of Welch and Satterthwaite. With three stored runs or more, not less than a prediction interval for one more run
    from their own scatter (e.g. Hahn & Meeker 1991, section 4.8); stored one after the other they may lie too close.
    """
    quantile = (1 + CONFIDENCE) / 2
    errors = [standard_error(now), *(standard_error(run) / len(before) for run in before)]
    within = sum(error**2 for error in errors)
    variance = within + (1 + 1 / len(before)) * between_runs**2
    rounds = min(len(now), *(len(run) for run in before))
    freedom = max(1, rounds - 1) * (variance / within) ** 2 if within else math.inf
    margin = float(t.ppf(quantile, freedom)) * math.sqrt(variance)
    if len(before) >= 3:
        spread = statistics.stdev(statistics.median(run) for run in before)
        margin = max(margin, float(t.ppf(quantile, len(before) - 1)) * spread * math.sqrt(1 + 1 / len(before)))
    return margin


def verdict(now: Row, before: Sequence[Row], between_runs: float = BETWEEN_RUNS) -> Verdict:
    """The verdict of this run's row against the same row of one stored run or more."""
    is_share = now.get("unit") in SHARES
    with_reference = not is_share and all("reference" in row for row in (now, *before))
    ours = logarithms(now, with_reference)
    theirs = [logarithms(row, with_reference) for row in before]
    change = statistics.median(ours) - statistics.mean([statistics.median(run) for run in theirs])
    margin = margin_of(ours, theirs, between_runs)
    word = "noise" if abs(change) <= margin else "faster" if change > 0 else "slower"
    reference = None if is_share else with_reference
    return Verdict(now["name"], word, math.expm1(change), math.expm1(margin), len(before), reference)


def verdicts(rows: Sequence[Row], files: Sequence[Path], between_runs: float = BETWEEN_RUNS) -> list[Verdict]:
    """The verdict of every row that all the files have too.

    Raises:
        UserError: a file that is no benchmark's, that shares no row, or whose row of the same name has other settings.
    """
    stored = [_rows(path) for path in files]
    for path, runs in zip(files, stored):
        for row in rows:
            _must_be_alike(row, runs.get(row["name"], {}), path)
    compared = [
        verdict(row, [runs[row["name"]] for runs in stored], between_runs)
        for row in rows
        if "all" in row and all(row["name"] in runs for runs in stored)
    ]
    if files and not compared:
        raise UserError(
            f"{', '.join(map(str, files))}: none of this run's rows is there; give the same options as the baseline's"
        )
    return compared


def _must_be_alike(now: Row, before: Row, path: Path) -> None:
    """Refuse rows whose settings differ; one that only one row has does not count: a stored file may be older."""
    for key in SETTINGS:
        if key in now and key in before and now[key] != before[key]:
            raise UserError(
                f"{path}: '{now['name']}' was measured with {key}={before[key]}, and this run has {key}={now[key]}; give "
                "the same options as the baseline's"
            )


def _rows(path: Path) -> dict[str, Row]:
    try:
        return {row["name"]: row for row in json.loads(path.read_text())["rows"] if "all" in row}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no result of a benchmark (--json FILE writes one)") from None


def table(compared: Sequence[Verdict]) -> str:
    """The verdicts as lines for the terminal."""
    lines = [f"{'against the baseline':<34} {'change':>8} {'margin':>8}"]
    lines += [f"{v.name:<34} {v.change:>+8.1%} {v.margin:>8.1%}  {v.word}" for v in compared]
    if any(v.reference is False for v in compared):
        lines.append("one of the runs has no reference: what slowed the whole machine counts as a difference")
    return "\n".join(lines)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of a comparison with stored runs."""
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="compare with this earlier run, or several of the same version: faster, slower or noise",
    )
    parser.add_argument(
        "--between-runs",
        type=float,
        default=BETWEEN_RUNS,
        help=f"how far runs of one version scatter, relative; benchmarks.noise measures it (default: {BETWEEN_RUNS})",
    )


def report(rows: Sequence[Row], options: Namespace) -> list[dict[str, Any]]:
    """Print the verdicts if `--baseline` asks for them, and return them for the benchmark's file.

    Raises:
        UserError: see `verdicts`.
    """
    if not options.baseline:
        return []
    compared = verdicts(rows, options.baseline, options.between_runs)
    print(table(compared))
    return [asdict(v) for v in compared]
