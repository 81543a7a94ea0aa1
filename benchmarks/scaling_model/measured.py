"""The measured half of `benchmarks.scaling`: steps of one rank and of several, and the model held against them."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measurement import measuring
from benchmarks.measurement.ranks import AllReduces, Group, Parts, Reference, TrainingSteps, groups
from benchmarks.scaling_model.calibration import Calibration, fit_link
from benchmarks.scaling_model.device import Device
from benchmarks.scaling_model.network import layers
from vgg_ddp.config import Config
from vgg_ddp.config.schema import DataConfig
from vgg_ddp.distributed.world import device_of
from vgg_ddp.errors import UserError

MESSAGES = (64 * 2**10, 2**20, 8 * 2**20, 32 * 2**20)  # bytes of the all-reduces that calibrate the link
Rows = list[dict[str, Any]]


class Steps:
    """A side for `measuring.in_turns`: images/s of a group's steps. Keeps each round's parts, the warm-up's first."""

    def __init__(self, group: Group, batch: int, steps: int, together: bool = True) -> None:
        self.ranks = group.size
        self._group, self._task, self._parts = group, TrainingSteps(batch, together, steps), list[Parts]()

    def __call__(self) -> float:
        self._parts.append(self._group.run(self._task))
        return self.ranks * self._task.batch / self._parts[-1]["step"]

    def median(self) -> Parts:
        """Of the rounds that count, part by part."""
        return {name: statistics.median(parts[name] for parts in self._parts[1:]) for name in self._parts[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of measured scaling, the calibration, and the model held against the steps of several ranks.

    Raises:
        UserError: more ranks than GPUs, or a batch that the ranks do not divide.
    """
    ranks: list[int] = sorted({1, *options.ranks})
    if any(options.batch % count for count in ranks):
        raise UserError(f"--batch {options.batch} does not divide over {ranks} ranks")
    if torch.cuda.is_available() and ranks[-1] > torch.cuda.device_count():
        raise UserError(f"--ranks {ranks[-1]}: this host has {torch.cuda.device_count()} GPUs")
    config = Config(
        network=options.network,
        batch=options.batch,
        precision=options.precision,
        data=DataConfig(image_size=options.image_size),
    )
    batch = options.batch
    with groups(ranks, config) as found:
        shares = sorted({batch // count for count in ranks}, reverse=True)
        steps = {f"alone, batch {share}": Steps(found[1], share, options.steps) for share in shares}
        for kind in ("apart", "weak", "strong"):
            for count in ranks[1:]:
                share = batch // count if kind == "strong" else batch
                steps[f"{kind}, {count} ranks"] = Steps(found[count], share, options.steps, together=kind != "apart")
        # Each group has a reference of its own, on the cores that its ranks are bound to.
        sides: dict[str, Callable[[], float]] = {
            f"reference, {count} ranks": _reference(found[count]) for count in ranks
        }
        sides |= steps
        if 2 in found:
            sides |= {f"all-reduce, {size} bytes": _all_reduce(found[2], size) for size in MESSAGES}
        rates = measuring.in_turns(sides, options.rounds)
    medians = {name: side.median() for name, side in steps.items()}
    rows = [
        {
            "name": name,
            **measuring.summary(rates[name], reference=rates[f"reference, {side.ranks} ranks"]),
            "seconds": dict(medians[name]),
        }
        for name, side in steps.items()
    ]
    if 2 not in found:
        return {"rows": rows}
    seconds = {size: 1 / statistics.median(rates[f"all-reduce, {size} bytes"]) for size in MESSAGES}
    calibration = calibrate(options, medians, ranks, seconds)
    return {
        "rows": rows,
        "calibration": {
            "bandwidth": calibration.link.bandwidth,
            "latency": calibration.link.protocols[0].ring,
            "all_reduce_seconds": seconds,
            "flops": calibration.device.flops,
            "memory_bandwidth": calibration.device.bandwidth,
            "alone": calibration.alone,
            "crowd": calibration.crowd,
        },
        "check": check(calibration, medians, batch, ranks),
    }


def calibrate(
    options: argparse.Namespace,
    medians: dict[str, Parts],
    ranks: list[int],
    all_reduce_seconds: dict[int, float],
) -> Calibration:
    """From a rank alone with the largest and the smallest batch, ranks apart, and all-reduces between two ranks."""
    device = device_of(0)
    alone = medians[f"alone, batch {options.batch}"]["step"]
    return Calibration(
        layers(options.network, True, "compact", 10, options.image_size),
        Device("here", measuring.matrix_product(device)(), measuring.copy(device)(), 1.0, 2, "measured here"),
        {share: medians[f"alone, batch {share}"] for share in (options.batch, options.batch // ranks[-1])},
        {count: medians[f"apart, {count} ranks"]["step"] / alone for count in ranks[1:]},
        fit_link(all_reduce_seconds, "between two ranks here"),
        None if device.type == "cuda" else measuring.cores(),
    )


def _reference(group: Group) -> Callable[[], float]:
    return lambda: 1 / group.run(Reference())["step"]


def _all_reduce(group: Group, size: int) -> Callable[[], float]:
    return lambda: 1 / group.run(AllReduces(size, repeats=max(2, min(50, 2**25 // size))))["step"]


def check(calibration: Calibration, medians: dict[str, Parts], batch: int, ranks: list[int]) -> Rows:
    """The steps of several ranks beside what the model says of them, and what they lose against one rank alone.

    "efficiency" is against as many ranks alone, "efficiency_of_cores" against as many as there are cores. The losses are
    shares of the measured step: "crowd" for computing at once, "communication", and "rest", which the model does not explain.
    """
    rows = []
    for kind in ("weak", "strong"):
        for count in ranks[1:]:
            local = batch if kind == "weak" else batch // count
            seconds = medians[f"{kind}, {count} ranks"]["step"]
            predicted = calibration.predict(count, local)
            alone = medians[f"alone, batch {batch}"]["step"] / batch * local
            at_once = calibration.crowd[count]
            usable = min(count, calibration.cores or count)
            # A smaller share of images computes less per second by itself, before any other rank is there.
            shrunk = medians[f"alone, batch {local}"]["step"] - alone
            rows.append(
                {
                    "name": f"{kind}, {count} ranks",
                    "kind": kind,
                    "ranks": count,
                    "cores": calibration.cores,
                    "local_batch": local,
                    "seconds": seconds,
                    "predicted_seconds": predicted.seconds,
                    "error": predicted.seconds / seconds - 1,
                    "efficiency": alone / seconds,
                    "efficiency_of_cores": alone / seconds * count / usable,
                    "loss_small_batch": shrunk / seconds,
                    "loss_crowd": (at_once - 1) * (alone + shrunk) / seconds,
                    "loss_communication": predicted.exposed / seconds,
                    "loss_rest": (seconds - at_once * (alone + shrunk) - predicted.exposed) / seconds,
                }
            )
    return rows
