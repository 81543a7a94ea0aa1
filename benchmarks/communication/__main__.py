"""The cost of communication between two ranks: images per second on loopback and over links of 20 Mbit/s to 10 Gbit/s.

    python -m benchmarks.communication [--heads compact paper] [--links loopback 1000] [--choices plain bf16] [--json FILE]

Each rank has one core and one thread. Efficiency is images per second over twice those of one rank alone on one core,
measured in the same round. The choices of `communication` alternate. Rounds in which other processes used at least 5 %
of the cores are left out, unless that is all of them, and the rest are counted. For local SGD, a step without
communication and a synchronisation are measured separately and combined.

    python -m benchmarks.communication --train DATASET [--json FILE]

trains a small network with each choice, and prints the steps to a fixed training loss and the test accuracy after the same
number of steps, for several seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.communication import report
from benchmarks.communication.choices import CHOICES
from benchmarks.communication.link import LINKS, measure_link
from benchmarks.communication.training import train
from benchmarks.measurement import baseline, command
from benchmarks.measurement.device_speed import chosen_precision
from benchmarks.measurement.two_hosts import why_not
from vgg_ddp.errors import UserError


def main() -> None:
    """Measure speed, or train, or show stored rows."""
    parser = command.parser("communication", __doc__, threads=1)
    parser.add_argument("--heads", nargs="+", default=["compact", "paper"], choices=["compact", "paper"])
    parser.add_argument(
        "--links", nargs="+", default=list(LINKS), choices=LINKS, help="loopback, or Mbit/s (default: all)"
    )
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--network", default="vgg16", help="(default: vgg16)")
    parser.add_argument("--precision", default="auto", choices=command.PRECISIONS, help=command.PRECISION_HELP)
    parser.add_argument("--image-size", type=command.count, default=32, help="pixels (default: 32)")
    parser.add_argument(
        "--batch", type=command.count, default=256, help="images in a step of both ranks (default: 256)"
    )
    parser.add_argument("--steps", type=command.count, default=3, help="steps in a round (default: 3)")
    parser.add_argument("--train", help="a dataset: train on it with each choice, instead of measuring speed")
    parser.add_argument("--train-steps", type=command.count, default=512, help="steps of a training (default: 512)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings of each choice (default: 0 1 2)"
    )
    parser.add_argument("--loss", type=float, default=1.7, help="training loss to reach (default: 1.7)")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the tables of a stored result, and measure nothing"
    )
    options = parser.parse_args()
    if options.show:
        print(report.tables(json.loads(options.show.read_text())["rows"]))
        return
    options.precision = chosen_precision(options.precision, torch.device("cpu"))
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("two cores are needed, one for each rank")
    if options.train:
        rows = train(options, cores)
        keep(options, rows)
    else:
        rows = measure_links(options, cores)
    baseline.report(rows, options)


def measure_links(options: argparse.Namespace, cores: list[int]) -> list[dict[str, Any]]:
    """Rows of every head over every link, which are printed and written one link at a time: the whole takes long."""
    lacking = why_not()
    if lacking:
        raise UserError(lacking)
    rows = []
    for head, link in itertools.product(options.heads, options.links):
        of_link = measure_link(options, head, link, cores)
        for row in of_link:
            print(
                f"{row['name']:<44} {row['images_per_second']:7.1f} images/s  efficiency {row['efficiency']:.3f} "
                f"({row['least']:.3f} to {row['most']:.3f})  {row['megabytes_per_step']:8.2f} MB a step",
                flush=True,
            )
        keep(options, of_link)
        rows += of_link
    return rows


def keep(options: argparse.Namespace, new: list[dict[str, Any]]) -> None:
    """Put rows into the file of `--json`, in place of those of the same name, and draw its picture again."""
    if options.json is None:
        return
    old = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    rows = list({row["name"]: row for row in [*old, *new]}.values())
    command.write(options, rows)
    report.draw(options.json, rows)


if __name__ == "__main__":
    command.run(main)
