"""The measured half of `benchmarks.scaling`: steps of one rank and of several, and the model held against them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.ranks import AllReduces, Group, Parts, TrainingSteps, groups
from benchmarks.scaling_model.calibration import Calibration, fit_link
from benchmarks.scaling_model.device import Device
from benchmarks.scaling_model.network import layers
from vgg_ddp.config import Config
from vgg_ddp.config.schema import DataConfig
from vgg_ddp.distributed import device_of
from vgg_ddp.errors import UserError

MESSAGES = (64 * 2**10, 2**20, 8 * 2**20, 32 * 2**20)  # bytes of the all-reduces that calibrate the link
Rows = list[dict[str, Any]]


class Steps:
    """A side for `measuring.in_turns`: images/s of a group's steps. Keeps each round's parts, the warm-up's first."""

    def __init__(self, group: Group, task: TrainingSteps) -> None:
        self._group, self._task, self._parts = group, task, list[Parts]()

    def __call__(self) -> float:
        self._parts.append(self._group.run(self._task))
        return self._group.size * self._task.batch / self._parts[-1]["step"]

    def median(self) -> Parts:
        """Of the rounds that count, part by part."""
        return {name: statistics.median(parts[name] for parts in self._parts[1:]) for name in self._parts[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of measured scaling, the calibration, and the model held against the steps of several ranks.

    Raises:
        UserError: more ranks than GPUs, or a batch that the ranks do not divide.
    """
    ranks: list[int] = sorted({1, *options.ranks})
    if options.batch % ranks[-1] or any(options.batch % count for count in ranks):
        raise UserError(f"--batch {options.batch} does not divide over {ranks} ranks")
    if torch.cuda.is_available() and ranks[-1] > torch.cuda.device_count():
        raise UserError(f"--ranks {ranks[-1]}: this host has {torch.cuda.device_count()} GPUs")
    config = Config(
        network=options.network,
        batch=options.batch,
        precision=options.precision,
        data=DataConfig(image_size=options.image_size),
    )

    def task(batch: int, together: bool = True) -> TrainingSteps:
        return TrainingSteps(batch, together, options.steps)

    locals_ = sorted({options.batch // count for count in ranks}, reverse=True)
    with groups(ranks, config) as found:
        alone = {batch: Steps(found[1], task(batch)) for batch in locals_}
        apart = {count: Steps(found[count], task(options.batch, together=False)) for count in ranks[1:]}
        weak = {count: Steps(found[count], task(options.batch)) for count in ranks[1:]}
        strong = {count: Steps(found[count], task(options.batch // count)) for count in ranks[1:]}
        device = device_of(0)
        sides: dict[str, Callable[[], float]] = {measuring.REFERENCE: measuring.matrix_product(device)}
        sides |= {f"alone, batch {batch}": side for batch, side in alone.items()}
        sides |= {f"apart, {count} ranks": side for count, side in apart.items()}
        sides |= {f"weak, {count} ranks": side for count, side in weak.items()}
        sides |= {f"strong, {count} ranks": side for count, side in strong.items()}
        if 2 in found:
            sides |= {f"all-reduce, {size} bytes": _all_reduce(found[2], size) for size in MESSAGES}
        rates = measuring.in_turns(sides, options.rounds)
    reference = rates.pop(measuring.REFERENCE)
    medians = {name: side.median() for name, side in sides.items() if isinstance(side, Steps)}
    rows = []
    for name, values in rates.items():
        if name in medians:
            rows.append(
                {"name": name, **measuring.summary(values, reference=reference), "seconds": dict(medians[name])}
            )
    results: dict[str, Any] = {"rows": rows, "reference_flops": statistics.median(reference)}
    if 2 in found:
        calibration = Calibration(
            layers(options.network, True, "compact", 10, options.image_size),
            Device("here", statistics.median(reference), copy_rate(device), 1.0, 2, "measured here"),
            {batch: medians[f"alone, batch {batch}"] for batch in (locals_[0], locals_[-1])},
            {
                count: medians[f"apart, {count} ranks"]["step"] / medians[f"alone, batch {options.batch}"]["step"]
                for count in apart
            },
            fit_link(
                {size: 1 / statistics.median(rates[f"all-reduce, {size} bytes"]) for size in MESSAGES},
                "between ranks here",
            ),
            None if device.type == "cuda" else measuring.cores(),
        )
        results["calibration"] = {
            "bandwidth": calibration.link.bandwidth,
            "latency": calibration.link.protocols[0].ring,
            "all_reduce_seconds": {
                size: 1 / statistics.median(rates[f"all-reduce, {size} bytes"]) for size in MESSAGES
            },
            "alone": calibration.alone,
            "crowd": calibration.crowd,
        }
        results["check"] = check(calibration, medians, options.batch, ranks)
    return results


def _all_reduce(group: Group, size: int) -> Callable[[], float]:
    return lambda: 1 / group.run(AllReduces(size, repeats=max(2, min(50, 2**25 // size))))["step"]


def copy_rate(device: torch.device) -> float:
    """Bytes/s that a large copy reads and writes; the quickest of five."""
    values = torch.ones(2**26, device=device)
    copy = torch.empty_like(values)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        copy.copy_(values)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * 4 * values.numel() / min(times[1:])


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
