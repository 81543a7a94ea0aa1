"""Seconds, epochs and PFLOP until a training first reaches a target accuracy on images held out from it, over several seeds.

    python -m benchmarks.time_to_accuracy CONFIG --target 0.6 [--seeds 3] [--json FILE] [key=value ...]

Each seed is one `vgg-ddp train CONFIG key=value ... seed=SEED`, run from nothing, one after the other; weights, order,
augmentation and which images are held out follow from the seed.

The target is met by the first validation of at least that accuracy: on the share of the training set that `data.validation`
holds out, which is never trained on. The test set is not looked at for it.

The clock runs from the moment when the training is built until the end of that validation. It includes waiting for data,
steps, validations and checkpoints, and excludes starting Python, preparing and opening the data, building the network, and
all that comes after the target. "command_seconds" is the time of the whole command, evaluation and report included.

PFLOP counts the multiplications and additions of forward and backward for the images trained on until then, at their size
in that epoch; validation is excluded.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import torch

from benchmarks.measurement import baseline, command, rounds
from benchmarks.measurement.device_speed import reference
from benchmarks.scaling_model.network import layers, training_flops
from vgg_ddp.config import Config, load
from vgg_ddp.distributed.world import device_of
from vgg_ddp.errors import UserError
from vgg_ddp.run.metrics_log import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def reached(metrics: Sequence[Row], target: float) -> Row | None:
    """The first validation's row with at least the target accuracy."""
    return next((row for row in validations(metrics) if row["accuracy"] >= target), None)


def validations(metrics: Sequence[Row]) -> list[Row]:
    """The rows of the validations, in their order."""
    return [row for row in metrics if row["split"] == "validation"]


def pflop(config: Config, classes: int, step: int, steps_per_epoch: int) -> float:
    """The PFLOP of forward and backward for the images of the first `step` steps, each epoch at its own size."""
    flops = 0.0
    for epoch, first in enumerate(range(0, step, steps_per_epoch)):
        sizes = config.data.train_sizes
        size = sizes[epoch] if epoch < len(sizes) else config.data.image_size
        network = layers(config.network, config.model.batch_norm, config.model.head, classes, size)
        flops += min(steps_per_epoch, step - first) * config.batch * training_flops(network)
    return flops / 1e15


def train(options: Namespace, seed: int, directory: Path) -> tuple[Path, float]:
    """One run; its directory and the whole command's seconds.

    Raises:
        UserError: the training did not end well; its own last line says why.
    """
    run = directory / f"seed-{seed}"
    start = [
        sys.executable,
        "-m",
        "vgg_ddp",
        "train",
        options.config,
        *options.overrides,
        f"seed={seed}",
        f"run.dir={run}",
    ]
    begun = time.perf_counter()
    done = subprocess.run(start, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{shlex.join(start[1:])} ended with {done.returncode}: {' '.join(last)}")
    return run, time.perf_counter() - begun


def read(run: Path, target: float, command_seconds: float) -> Row:
    """The row of a finished run; "seconds", "epochs" and "pflop" are None where the target was not reached."""
    config = load(run / "config.yaml")
    metrics = read_metrics(run / "metrics.jsonl")
    summary = msgspec.json.decode((run / "summary.json").read_bytes())
    evaluation = msgspec.json.decode((run / "evaluation" / "summary.json").read_bytes())
    first = reached(metrics, target)
    last = validations(metrics)[-1:]
    row: Row = {
        "seed": config.seed,
        "precision": config.precision,
        "seconds": None,
        "epochs": None,
        "pflop": None,
        "accuracy_then": None,
        "final_validation_accuracy": last[0]["accuracy"] if last else None,
        "test_accuracy": evaluation["accuracy"],
        "train_seconds": summary["train_seconds"],
        "command_seconds": command_seconds,
        "curve": [[row["seconds"], row["epoch"], row["accuracy"]] for row in validations(metrics)],
    }
    if first is not None:
        steps_per_epoch = round(first["step"] / first["epoch"])
        row["seconds"], row["epochs"] = first["seconds"], first["epoch"]
        row["accuracy_then"] = first["accuracy"]
        row["pflop"] = pflop(config, len(evaluation["per_class"]), first["step"], steps_per_epoch)
    return row


def over_seeds(runs: Sequence[Row], machine_speed: list[float]) -> list[Row]:
    """A row for each of seconds, epochs and PFLOP: mean and standard deviation, if every seed has reached the target."""
    if any(run["seconds"] is None for run in runs):
        return []
    rows = []
    for figure in ("seconds", "epochs", "pflop"):
        values = [run[figure] for run in runs]
        rows.append(
            {
                "name": f"{figure} to the target",
                **rounds.summary(
                    values, figure, machine_speed if figure == "seconds" else None, higher_is_better=False
                ),
                "mean": statistics.mean(values),
                "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    return rows


def draw(runs: Sequence[Row], target: float, path: Path) -> None:
    """Accuracy against seconds, a line for each seed."""
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for run in runs:
        axes.plot([p[0] for p in run["curve"]], [p[2] for p in run["curve"]], marker="o", label=f"seed {run['seed']}")
        if run["seconds"] is not None:
            axes.axvline(run["seconds"], color="#999999", linewidth=0.8)
    axes.axhline(target, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlabel("seconds of training, with validations and checkpoints, without start")
    axes.set_ylabel("accuracy on held-out images")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(options: Namespace) -> dict[str, Any]:
    """Train once for each seed; the contents of the file.

    Raises:
        UserError: a training that fails, or that holds no images out.
    """
    config = load(options.config, options.overrides)
    if config.data.validation == 0:
        raise UserError("data.validation=0 holds no images out; set it above 0, e.g. data.validation=0.1")
    machine_speed = reference(device_of(0))
    machine_speed()  # warm-up
    runs, speed = [], []
    with tempfile.TemporaryDirectory(prefix="vgg_ddp-time-to-accuracy-") as place:
        for seed in range(options.seeds):
            speed.append(machine_speed())
            run, seconds = train(options, seed, options.keep or Path(place))
            runs.append(read(run, options.target, seconds))
            print(_line(runs[-1]), flush=True)
    return {
        "target": options.target,
        "target_rule": "first validation on held-out training images of at least this accuracy",
        "timing_rule": "from the built training to the end of that validation; in: data wait, steps, validations, "
        "checkpoints; out: start, data preparation, building, final evaluation, report",
        "config": msgspec.to_builtins(config),
        "runs": runs,
        "rows": over_seeds(runs, speed),
    }


def _line(run: Row) -> str:
    if run["seconds"] is None:
        return f"seed {run['seed']}: not reached; {run['final_validation_accuracy']:.2%} at the end"
    return (
        f"seed {run['seed']}: {run['seconds']:8.1f} s  {run['epochs']:6.2f} epochs  {run['pflop']:9.3f} PFLOP  "
        f"({run['accuracy_then']:.2%} then; {run['final_validation_accuracy']:.2%} at the end, test {run['test_accuracy']:.2%})"
    )


def show(contents: dict[str, Any]) -> None:
    """Print the means over the seeds, or how many of them did not reach the target."""
    for row in contents["rows"]:
        deviation = row["standard_deviation"]
        spread = "" if deviation is None else f" ± {deviation:.3g}"
        print(f"{row['name']:<24} {row['mean']:.4g}{spread}  ({row['least']:.4g} to {row['most']:.4g})")
    missed = sum(run["seconds"] is None for run in contents["runs"])
    if missed:
        print(f"{missed} of {len(contents['runs'])} seeds did not reach {contents['target']:.2%}: no mean is given")


def main() -> None:
    """Train, print and keep the rows."""
    parser = command.parser("time_to_accuracy", __doc__)
    parser.add_argument("config", help="a configuration, as vgg-ddp train takes it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    parser.add_argument("--target", type=float, required=True, help="accuracy on held-out images, 0 to 1")
    parser.add_argument("--seeds", type=int, default=3, help="trainings, with seeds 0, 1, ... (default: 3)")
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory (default: they are deleted)")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    contents = measure(options)
    show(contents)
    contents["verdicts"] = baseline.report(contents["rows"], options)
    command.write(options, **contents)
    if options.json:
        draw(contents["runs"], options.target, options.json.with_suffix(".png"))


if __name__ == "__main__":
    command.run(main)
