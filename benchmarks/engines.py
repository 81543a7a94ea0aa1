"""The engines side by side: the same step on the same two ranks, alternately by DDP and by DeepSpeed's stages.

    python -m benchmarks.engines [--stages 0 1 2 3] [--json FILE]

Each rank has one core and one thread (or a GPU). A ratio is DeepSpeed's images per second over DDP's in the same round;
its median is shown.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import chosen_precision
from benchmarks.measurement.ranks import Group, PhaseSeconds, TrainingSteps, check_ranks
from benchmarks.measurement.step import PHASES
from vgg_ddp.config import Config
from vgg_ddp.distributed.world import device_of

DDP = "ddp"


def measure(options: Namespace) -> list[dict[str, Any]]:
    """A row for DDP and each of DeepSpeed's stages.

    Raises:
        UserError: more ranks than GPUs, or a batch that the ranks do not divide.
    """
    check_ranks([options.ranks], options.batch)
    common = {
        "network": options.network,
        "batch": options.batch,
        "precision": chosen_precision(options.precision, device_of(0)),
    }
    engines: dict[str, dict[str, Any]] = {DDP: {}}
    for stage in options.stages:
        engines[f"deepspeed {stage}"] = {"engine": "deepspeed", "deepspeed": {"stage": stage}}
    task = TrainingSteps(options.batch // options.ranks, together=True, steps=options.steps)
    with ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        measured: dict[str, list[PhaseSeconds]] = {name: [] for name in engines}
        for name, engine in engines.items():
            group = Group(options.ranks, msgspec.convert({**common, **engine}, Config))
            stack.callback(group.stop)

            def rate(group: Group = group, seconds: list[PhaseSeconds] = measured[name]) -> float:
                seconds.append(group.run(task))
                return options.batch / seconds[-1]["step"]

            sides[name] = rate
        rates = rounds.in_turns(sides, options.rounds)
    return [
        {
            "name": f"{options.network} {options.batch} {common['precision']} {name}",
            "engine": name,
            **common,
            "ranks": options.ranks,
            **rounds.summary(values),
            "to_ddp": statistics.median(own / ddp for own, ddp in zip(values, rates[DDP])),
            "seconds": {phase: statistics.median(s[phase] for s in measured[name][1:]) for phase in PHASES},
        }
        for name, values in rates.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print a line for each engine."""
    for row in rows:
        seconds = ", ".join(f"{phase} {value:.3f} s" for phase, value in row["seconds"].items())
        print(f"{row['engine']:<12} {row['images_per_second']:8.1f} images/s   to DDP {row['to_ddp']:.3f}   {seconds}")


def main() -> None:
    """Measure, print and keep the rows."""
    parser = command.parser("engines", __doc__, threads=1)
    parser.add_argument(
        "--network", default="vgg16", choices=["vgg11", "vgg13", "vgg16", "vgg19", "vgg_tiny"], help="(default: vgg16)"
    )
    parser.add_argument(
        "--batch", type=command.count, default=128, help="images in a step, of all ranks (default: 128)"
    )
    parser.add_argument("--precision", default="auto", choices=command.PRECISIONS, help=command.PRECISION_HELP)
    parser.add_argument(
        "--stages", nargs="+", type=int, default=[0, 1, 2, 3], choices=range(4), help="of ZeRO (default: all)"
    )
    parser.add_argument("--ranks", type=command.count, default=2, help="(default: 2)")
    parser.add_argument("--steps", type=command.count, default=4, help="steps in a round (default: 4)")
    options = parser.parse_args()
    rows = measure(options)
    show(rows)
    command.keep(options, rows, "images_per_second", f"images per second, {options.ranks} ranks")


if __name__ == "__main__":
    command.run(main)
