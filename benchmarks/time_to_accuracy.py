"""Seconds, epochs and PFLOP until a training first reaches a target accuracy on images held out from it, over several seeds.

    python -m benchmarks.time_to_accuracy CONFIG [CONFIG ...] --target 0.6 [--seeds 3] [--json FILE] [key=value ...]
    python -m benchmarks.time_to_accuracy CONFIG --target 0.6 --leave-out model.whiten=false --leave-out optimizer.name=sgd
    python -m benchmarks.time_to_accuracy --runs DIR --target 0.6 [--json FILE]

Each seed of each recipe is one `vgg-ddp train CONFIG key=value ... seed=SEED` from scratch, one after the other;
weights, order, augmentation and the choice of held-out images follow from the seed. Several recipes are all trained
with one seed, then all with the next, so that other load on the machine affects all alike. `--leave-out` adds a recipe
that is the first one with one more override: an ablation. `--runs` trains nothing: it reads finished runs, each in
DIR/RECIPE/seed-SEED, where `--keep DIR` leaves them.

The target is met by the first validation of at least that accuracy: on the share of the training set that `data.validation`
holds out, which is never trained on. The test set is not looked at for it.

The clock runs from the moment when the training is built until the end of that validation. It includes waiting for data,
steps, validations and checkpoints, and excludes starting Python, preparing and opening the data, building the network, and
all that comes after the target. "seconds_with_building" has the building too, once the data are open: initial weights, a
whitened layer, compilation. "command_seconds" is the time of the whole command, evaluation and report included.

PFLOP are those that torch counts (`torch.utils.flop_counter`) in forward and backward for the images trained on until then, at
their size in that epoch, and in Muon's updates, counted for every rank, since each computes them; validation is excluded.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import torch

from benchmarks.measurement import baseline, command, rounds
from benchmarks.measurement.device_speed import reference
from benchmarks.measurement.rounds import mean_and_deviation
from benchmarks.measurement.training_cost import pflop_of_steps
from vgg_ddp.analysis.intervals import wilson
from vgg_ddp.config import Config, load
from vgg_ddp.distributed.world import device_of
from vgg_ddp.errors import UserError
from vgg_ddp.run.metrics_log import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What is trained with each seed: a configuration and its overrides, `words`."""

    name: str
    config: str
    words: tuple[str, ...] = ()


def recipes(words: Sequence[str], left_out: Sequence[str]) -> list[Recipe]:
    """A recipe for each configuration among `words`, and for each of `left_out` the first one with that override added.

    Raises:
        UserError: no configuration is named, or one twice.
    """
    changes = tuple(word for word in words if "=" in word)
    paths = [word for word in words if "=" not in word]
    if not paths or len(set(paths)) < len(paths):
        raise UserError("name one configuration or more, each once, e.g. configs/quickstart.yaml")
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = paths
    whole = [Recipe(name, path, changes) for name, path in zip(names, paths, strict=True)]
    return whole + [Recipe(f"with {word}", paths[0], (*changes, word)) for word in left_out]


def reached(metrics: Sequence[Row], target: float) -> Row | None:
    """The first validation's row with at least the target accuracy."""
    return next((row for row in validations(metrics) if row["accuracy"] >= target), None)


def validations(metrics: Sequence[Row]) -> list[Row]:
    """The rows of the validations, in their order."""
    return [row for row in metrics if row["split"] == "validation"]


def train(recipe: Recipe, seed: int, directory: Path) -> tuple[Path, float]:
    """One run; its directory and the whole command's seconds.

    Raises:
        UserError: the training did not end well; its own last line says why.
    """
    run = directory / recipe.name.replace("/", "-") / f"seed-{seed}"
    start = [
        sys.executable,
        "-m",
        "vgg_ddp",
        "train",
        recipe.config,
        "restarts=0",  # the time of a restart would count as training
        *recipe.words,
        f"seed={seed}",
        f"run.dir={run}",
    ]
    begun = time.perf_counter()
    done = subprocess.run(start, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{shlex.join(start[1:])} ended with {done.returncode}: {' '.join(last)}")
    return run, time.perf_counter() - begun


def read(recipe: str, run: Path, target: float, command_seconds: float | None) -> Row:
    """The row of a finished run; "seconds", "epochs" and "pflop" are None where the target was not reached.

    "curve" has seconds, epoch, accuracy and PFLOP of each validation.
    """
    config = load(run / "config.yaml")
    metrics = read_metrics(run / "metrics.jsonl")
    summary = msgspec.json.decode((run / "summary.json").read_bytes())
    evaluation = msgspec.json.decode((run / "evaluation" / "summary.json").read_bytes())
    first, looks = reached(metrics, target), validations(metrics)
    last = looks[-1:]
    steps_per_epoch = round(last[0]["step"] / last[0]["epoch"]) if last else 1
    cost = pflop_of_steps(config, len(evaluation["per_class"]), steps_per_epoch, summary["world_size"])
    row: Row = {
        "recipe": recipe,
        "seed": config.seed,
        "precision": config.precision,
        "seconds": None,
        "seconds_with_building": None,
        "epochs": None,
        "pflop": None,
        "accuracy_then": None,
        "final_validation_accuracy": last[0]["accuracy"] if last else None,
        "test_accuracy": evaluation["accuracy"],
        "train_seconds": summary["train_seconds"],
        "command_seconds": command_seconds,
        "curve": [[row["seconds"], row["epoch"], row["accuracy"], cost(row["step"])] for row in looks],
    }
    if first is not None:
        row["seconds"], row["epochs"], row["pflop"] = first["seconds"], first["epoch"], cost(first["step"])
        row["accuracy_then"] = first["accuracy"]
        if "build_seconds" in summary:  # not in a run of an earlier version
            row["seconds_with_building"] = first["seconds"] + summary["build_seconds"]
    return row


def failed(recipe: str, seed: int, reason: str) -> Row:
    """The row of a run that did not end well: the target was not reached, and nothing is known at the end."""
    unknown = ("seconds", "seconds_with_building", "epochs", "pflop", "accuracy_then", "final_validation_accuracy")
    figures = dict.fromkeys((*unknown, "test_accuracy", "train_seconds", "command_seconds"))
    return {"recipe": recipe, "seed": seed, **figures, "curve": [], "failed": reason}


def over_seeds(runs: Sequence[Row], machine_speed: list[float] | None, called: str = "") -> list[Row]:
    """A row for each of seconds, without and with building, epochs and PFLOP, if every seed reached the target.

    It has the mean, its 95 % interval, and the standard deviation.

    Args:
        machine_speed: the reference's rate before each of `runs`; None: not known.
        called: of the recipe, before the rows' names.
    """
    if any(run["seconds"] is None for run in runs):
        return []
    rows = []
    for figure in ("seconds", "seconds_with_building", "epochs", "pflop"):
        values = [run[figure] for run in runs]
        if None in values:
            continue
        timed = figure.startswith("seconds")
        unit, _, beside = figure.partition("_")
        rows.append(
            {
                "name": f"{called}{unit} to the target{f', {beside}'.replace('_', ' ') if beside else ''}",
                **rounds.summary(values, unit, machine_speed if timed else None, higher_is_better=False),
                **mean_and_deviation(values),
            }
        )
    return rows


def table(runs: Sequence[Row], target: float) -> list[Row]:
    """A row for each recipe: how many seeds reached the target, and the accuracies at the end against the first recipe's.

    The difference is paired: that of the means over the seeds that both have, with its 95 % interval; None if there are none.
    A run that failed, or that held no images out, has no accuracy at the end and is in no mean of them.
    """
    by_recipe: dict[str, list[Row]] = {}
    for run in runs:
        by_recipe.setdefault(run["recipe"], []).append(run)
    accuracies_of = {
        name: {
            run["seed"]: run["final_validation_accuracy"] for run in own if run["final_validation_accuracy"] is not None
        }
        for name, own in by_recipe.items()
    }
    first = next(iter(accuracies_of.values()))
    rows = []
    for name, own in by_recipe.items():
        accuracies = accuracies_of[name]
        differences = [accuracy - first[seed] for seed, accuracy in accuracies.items() if seed in first]
        got_there = sum(run["seconds"] is not None for run in own)
        rows.append(
            {
                "recipe": name,
                "seeds": len(own),
                "reached": got_there,
                "share_over_target": [got_there / len(own), *(wilson(got_there, len(own)) or ())],
                "target": target,
                "final_validation_accuracy": mean_and_deviation([*accuracies.values()]),
                "against_first": mean_and_deviation(differences) if differences else None,
                "train_seconds": mean_and_deviation(
                    [run["train_seconds"] for run in own if run["train_seconds"] is not None]
                ),
            }
        )
    return rows


def draw(runs: Sequence[Row], target: float, path: Path) -> None:
    """Accuracy against seconds, and against PFLOP: a line for each seed, a colour for each recipe if there are several."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    names = list(dict.fromkeys(run["recipe"] for run in runs))
    for axes, column, figure_of, label in (
        (panels[0], 0, "seconds", "seconds of training, with validations and checkpoints, without start"),
        (panels[1], 3, "pflop", "PFLOP of the images trained on, and of Muon's updates"),
    ):
        for run in runs:
            name = run["recipe"] if len(names) > 1 else f"seed {run['seed']}"
            known = name in axes.get_legend_handles_labels()[1]
            color = f"C{names.index(run['recipe'])}" if len(names) > 1 else None
            curve = [point[column] for point in run["curve"]], [point[2] for point in run["curve"]]
            axes.plot(*curve, marker="o", markersize=3, linewidth=1, label=None if known else name, color=color)
            if run[figure_of] is not None:
                axes.axvline(run[figure_of], color="#999999", linewidth=0.5)
        axes.axhline(target, color="black", linestyle="--", linewidth=0.8)
        axes.set_xlabel(label)
    panels[0].set_ylabel("accuracy on held-out images")
    panels[1].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(options: Namespace) -> dict[str, Any]:
    """Train each recipe once for each seed, or read finished runs; the contents of the file.

    Raises:
        UserError: the first training fails, or one holds no images out; no finished runs.
    """
    if options.runs is not None:
        configs, runs, speed = finished(options)
    else:
        configs, runs, speed = trained(options)
    rows = []
    for name in configs:
        of_recipe = [number for number, run in enumerate(runs) if run["recipe"] == name]
        called = "" if len(configs) == 1 else f"{name}: "
        speeds = [speed[number] for number in of_recipe] if speed else None
        found = over_seeds([runs[number] for number in of_recipe], speeds, called)
        rows += [{**row, "recipe": name, "target": options.target} for row in found]
    return {
        "target": options.target,
        "target_rule": "first validation on held-out training images of at least this accuracy",
        "timing_rule": "from the built training to the end of that validation; in: data wait, steps, validations, "
        "checkpoints; out: start, data preparation, building (but in seconds with building), final evaluation, report",
        "configs": msgspec.to_builtins(configs),
        "recipes": table(runs, options.target),
        "runs": runs,
        "rows": rows,
    }


def trained(options: Namespace) -> tuple[dict[str, Config], list[Row], list[float]]:
    """Of each recipe its configuration, by name; the runs' rows; the reference's rate before each run.

    A training that fails after others have ended well is a row that did not reach the target: theirs are kept.

    Raises:
        UserError: see `measure`.
    """
    tried = recipes(options.words, options.leave_out)
    configs = {recipe.name: load(recipe.config, recipe.words) for recipe in tried}
    for config in configs.values():
        if config.data.validation == 0:
            raise UserError("data.validation=0 holds no images out; set it above 0, e.g. data.validation=0.1")
    machine_speed = reference(device_of(0))
    machine_speed()  # warm-up
    runs, speed = [], []
    with tempfile.TemporaryDirectory(prefix="vgg_ddp-time-to-accuracy-") as place:
        for seed in range(options.seeds):
            for recipe in tried:
                speed.append(machine_speed())
                try:
                    run, seconds = train(recipe, seed, options.keep or Path(place))
                    runs.append(read(recipe.name, run, options.target, seconds))
                except UserError as error:
                    if not runs:
                        raise
                    runs.append(failed(recipe.name, seed, str(error)))
                print(_line(runs[-1]) if len(tried) == 1 else f"{recipe.name}, {_line(runs[-1])}", flush=True)
    return configs, runs, speed


def finished(options: Namespace) -> tuple[dict[str, Config], list[Row], list[float]]:
    """What `trained` gives, of the finished runs in `options.runs`; the machine's speed is not known.

    Raises:
        UserError: there are none.
    """
    if options.words or options.leave_out:
        raise UserError("--runs reads finished runs as they are: name no configuration and no key=value beside it")
    found = sorted(path.parents[1] for path in options.runs.glob("*/seed-*/evaluation/summary.json"))
    if not found:
        raise UserError(f"{options.runs} holds no finished run RECIPE/seed-SEED; --keep leaves them so")
    configs: dict[str, Config] = {}
    runs = []
    for run in found:
        name = run.parent.name
        configs.setdefault(name, load(run / "config.yaml"))
        runs.append(read(name, run, options.target, None))
        print(f"{name}, {_line(runs[-1])}")
    return configs, runs, []


def _line(run: Row) -> str:
    if "failed" in run:
        return f"seed {run['seed']}: not reached; {run['failed']}"
    if run["seconds"] is None:
        return f"seed {run['seed']}: not reached; {_shown(run['final_validation_accuracy'], '.2%')} at the end"
    return (
        f"seed {run['seed']}: {run['seconds']:8.1f} s  {run['epochs']:6.2f} epochs  {run['pflop']:9.3f} PFLOP  "
        f"({run['accuracy_then']:.2%} then; {run['final_validation_accuracy']:.2%} at the end, test {run['test_accuracy']:.2%})"
    )


def _shown(value: float | None, form: str) -> str:
    """A figure, or a dash where it is not known."""
    return "-" if value is None else f"{value:{form}}"


def show(contents: dict[str, Any]) -> None:
    """Print the means over the seeds, or how many of them did not reach the target."""
    width = max((len(row["name"]) for row in contents["rows"]), default=0)
    for row in contents["rows"]:
        deviation = row["standard_deviation"]
        spread = "" if deviation is None else f" ± {deviation:.3g}"
        print(f"{row['name']:<{width}} {row['mean']:.4g}{spread}  ({row['least']:.4g} to {row['most']:.4g})")
    for row in contents["recipes"]:
        missed = row["seeds"] - row["reached"]
        if missed:
            print(
                f"{row['recipe']}: {missed} of {row['seeds']} seeds did not reach {row['target']:.2%}: no mean is given"
            )
    if len(contents["recipes"]) > 1:
        print(
            f"\n{'accuracy at the end':<44} {'mean':>8} {'deviation':>10} {'against the first, 95 %':>28} {'seconds':>9}"
        )
    for row in contents["recipes"][: None if len(contents["recipes"]) > 1 else 0]:
        print(_ablation_line(row))


def _ablation_line(row: Row) -> str:
    accuracy, against = row["final_validation_accuracy"], row["against_first"]
    deviation = "" if accuracy["standard_deviation"] is None else f"{accuracy['standard_deviation']:.2%}"
    ends = None if against is None else against["mean_interval"]
    interval = "" if ends is None else f" ({ends[0]:+.2%} to {ends[1]:+.2%})"
    difference = "" if against is None else f"{against['mean']:+.2%}"
    return (
        f"{row['recipe']:<44} {_shown(accuracy['mean'], '.2%'):>8} {deviation:>10} {difference:>8}{interval:<21} "
        f"{_shown(row['train_seconds']['mean'], '.1f'):>8}"
    )


def main() -> None:
    """Train, print and keep the rows."""
    parser = command.parser("time_to_accuracy", __doc__, in_rounds=False)
    parser.add_argument(
        "words", nargs="*", metavar="CONFIG|key=value", help="configurations, and changes to all of them"
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="key=value",
        help="also train the first configuration with this override added, for comparison (repeatable)",
    )
    parser.add_argument("--target", type=float, required=True, help="accuracy on held-out images, 0 to 1")
    parser.add_argument("--seeds", type=command.count, default=3, help="trainings, with seeds 0, 1, ... (default: 3)")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="read the finished runs in this directory, train nothing"
    )
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory (default: they are deleted)")
    options = parser.parse_intermixed_args()
    if not 0 < options.target <= 1:
        raise UserError(f"--target {options.target:g} is no share from 0 to 1, e.g. 0.94")
    torch.set_num_threads(options.threads)
    contents = measure(options)
    show(contents)
    command.write(options, **contents)
    if options.json:
        draw(contents["runs"], options.target, options.json.with_suffix(".png"))
    if options.baseline:  # last, as it may be refused: what was measured is already written
        command.write(options, **contents, verdicts=baseline.report(contents["rows"], options))


if __name__ == "__main__":
    command.run(main)
