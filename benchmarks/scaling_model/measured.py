"""The measured half of `benchmarks.scaling`: steps of one rank and of several, and the model compared with them."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.measurement import rounds
from benchmarks.measurement.device_speed import DTYPES, chosen_precision, copy, matrix_product
from benchmarks.measurement.ranks import AllReduces, Group, PhaseSeconds, Reference, TrainingSteps, check_ranks, groups
from benchmarks.scaling_model.calibration import Calibration, fit_link
from benchmarks.scaling_model.device import Device
from benchmarks.scaling_model.network import layers
from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.distributed.world import device_of

MESSAGES = (64 * 2**10, 2**20, 8 * 2**20, 32 * 2**20)  # bytes of the all-reduces that calibrate the link
Rows = list[dict[str, Any]]


class Steps:
    """A side for `rounds.in_turns`: images/s of a group's steps. Keeps the phases of each round, the warm-up first."""

    def __init__(self, group: Group, batch: int, steps: int, together: bool = True) -> None:
        self.ranks = group.size
        self._group, self._task, self._rounds = group, TrainingSteps(batch, together, steps), list[PhaseSeconds]()

    def __call__(self) -> float:
        """Measure one round."""
        self._rounds.append(self._group.run(self._task))
        return self.ranks * self._task.batch / self._rounds[-1]["step"]

    def median(self) -> PhaseSeconds:
        """Of the rounds that count, phase by phase."""
        return {name: statistics.median(seconds[name] for seconds in self._rounds[1:]) for name in self._rounds[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of measured scaling, the calibration, and the model compared with the steps of several ranks.

    Raises:
        UserError: more ranks than GPUs, or a batch that the ranks do not divide.
    """
    precision = chosen_precision(options.precision, device_of(0))
    ranks: list[int] = sorted({1, *options.ranks})
    check_ranks(ranks, options.batch)
    config = Config(
        network=options.network,
        batch=options.batch,
        precision=precision,  # type: ignore[arg-type]
        data=DataConfig(image_size=options.image_size),
    )
    batch = options.batch
    with groups(ranks, config) as group:
        local_batches = sorted({batch // count for count in ranks}, reverse=True)
        steps = {f"alone, batch {local}": Steps(group[1], local, options.steps) for local in local_batches}
        for kind in ("apart", "weak", "strong"):
            for count in ranks[1:]:
                local = batch // count if kind == "strong" else batch
                steps[f"{kind}, {count} ranks"] = Steps(group[count], local, options.steps, together=kind != "apart")
        # Each group has a reference of its own, on the cores that its ranks are bound to.
        sides: dict[str, Callable[[], float]] = {
            f"reference, {count} ranks": _reference(group[count]) for count in ranks
        }
        sides |= steps
        if 2 in ranks:
            sides |= {f"all-reduce, {size} bytes": _all_reduce(group[2], size) for size in MESSAGES}
        rates = rounds.in_turns(sides, options.rounds)
    medians = {name: side.median() for name, side in steps.items()}
    rows = [
        {
            "name": name,
            "network": options.network,
            "image_size": options.image_size,
            "batch": options.batch,
            "precision": precision,
            **rounds.summary(rates[name], reference=rates[f"reference, {side.ranks} ranks"]),
            "seconds": dict(medians[name]),
        }
        for name, side in steps.items()
    ]
    if 2 not in ranks:
        return {"rows": rows}
    seconds = {size: 1 / statistics.median(rates[f"all-reduce, {size} bytes"]) for size in MESSAGES}
    calibration = calibrate(options, precision, medians, ranks, seconds)
    return {
        "rows": rows,
        "calibration": {
            "bandwidth": calibration.link.bandwidth,
            "latency": calibration.link.protocols[0].ring,
            "all_reduce_seconds": seconds,
            "flops": calibration.device.flops,
            "memory_bandwidth": calibration.device.bandwidth,
            "alone": calibration.alone,
            "contention": calibration.contention,
        },
        "check": check(calibration, medians, batch, ranks),
    }


def calibrate(
    options: argparse.Namespace,
    precision: str,
    medians: dict[str, PhaseSeconds],
    ranks: list[int],
    all_reduce_seconds: dict[int, float],
) -> Calibration:
    """From a rank alone with the largest and the smallest batch, ranks apart, and all-reduces between two ranks."""
    device = device_of(0)
    alone = medians[f"alone, batch {options.batch}"]["step"]
    return Calibration(
        layers(options.network, True, "compact", 10, options.image_size),
        Device(
            "here",
            matrix_product(device, precision)(),
            copy(device)(),
            1.0,
            DTYPES[precision].itemsize,
            "measured here",
        ),
        {local: medians[f"alone, batch {local}"] for local in (options.batch, options.batch // ranks[-1])},
        {count: medians[f"apart, {count} ranks"]["step"] / alone for count in ranks[1:]},
        fit_link(all_reduce_seconds, "between two ranks here"),
        None if device.type == "cuda" else cores.usable(),
    )


def _reference(group: Group) -> Callable[[], float]:
    return lambda: 1 / group.run(Reference())["step"]


def _all_reduce(group: Group, size: int) -> Callable[[], float]:
    return lambda: 1 / group.run(AllReduces(size, repeats=max(2, min(50, 2**25 // size))))["step"]


def check(calibration: Calibration, medians: dict[str, PhaseSeconds], batch: int, ranks: list[int]) -> Rows:
    """The steps of several ranks beside the model's predictions, and what they lose against one rank alone.

    "efficiency" is against as many ranks alone, "efficiency_of_cores" against as many as there are cores. The losses are
    relative to the measured step: "contention" of ranks that compute at the same time, "communication", and "rest", which the
    model does not explain.
    """
    rows = []
    for kind in ("weak", "strong"):
        for count in ranks[1:]:
            local = batch if kind == "weak" else batch // count
            seconds = medians[f"{kind}, {count} ranks"]["step"]
            predicted = calibration.predict(count, local)
            alone = medians[f"alone, batch {batch}"]["step"] / batch * local
            contention = calibration.contention[count]
            usable = min(count, calibration.cores or count)
            # A smaller local batch computes fewer images per second by itself, without any other rank.
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
                    "loss_contention": (contention - 1) * (alone + shrunk) / seconds,
                    "loss_communication": predicted.exposed / seconds,
                    "loss_rest": (seconds - contention * (alone + shrunk) - predicted.exposed) / seconds,
                }
            )
    return rows
