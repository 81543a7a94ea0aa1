"""The step of a cell, timed by phase, its longest kernels, and the batches that it takes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measurement import command
from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.device_speed import wait_for
from benchmarks.measurement.flops import layers
from benchmarks.measurement.step import PHASES, TrainingStep, noise
from benchmarks.throughput.cell import Cell
from vgg_ddp import loaders
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order
from vgg_ddp.distributed.memory import peak_bytes, reset_peak
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.loaders.choice import choose

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Timing:
    """What some steps took.

    Attributes:
        seconds: of all of them, the device's work included.
        joules: of all of them; NaN where the device does not count them.
        phases: seconds of each phase of one step, as the host sees them.
    """

    seconds: float
    joules: float
    phases: dict[str, float]


class Step:
    """The step of the training loop, timed by phase.

    Attributes:
        is_graph, first_steps: see `TrainingStep`.
        phases_apart: whether phases are timed in extra steps, in which the host waits for the device after each phase:
            needed where it runs ahead of the device, as on a GPU.
        peak_bytes: the most memory that a rank uses for a step, where that was measured (`measure_peak`).
    """

    def __init__(
        self, cell: Cell, world: World, batches: Batches, joules: Callable[[], float] = lambda: math.nan
    ) -> None:
        self._training = TrainingStep(cell.config(world), world)
        self.is_graph, self.first_steps = self._training.is_graph, self._training.first_steps
        self.layers = layers(self._training.network, cell.image_size)
        self._precision, self._batches, self._device, self._joules = cell.precision, batches, world.device, joules
        self.phases_apart = world.device.type == "cuda"
        self.peak_bytes: int | None = None

    @property
    def flop_per_image(self) -> float:
        """Of forward and backward."""
        return sum(layer.training_flops for layer in self.layers)

    def run(self, steps: int, reduce: bool = True) -> Timing:
        """Take `steps` steps."""
        with arithmetic(self._precision):
            before, start = self._joules(), time.perf_counter()
            phases = self._phases(steps, reduce, wait=False)
            wait_for(self._device)
            seconds, joules = time.perf_counter() - start, self._joules() - before
            if self.phases_apart:
                phases = self._phases(steps, reduce, wait=True)
        return Timing(seconds, joules, phases)

    def measure_peak(self, world: World) -> None:
        """Record the peak memory of one more step, or of all so far if they are a graph. A collective call."""
        if not self.is_graph:  # a graph's memory is allocated while it is recorded: a replay allocates none
            reset_peak(world.device)
            self.run(1)
        self.peak_bytes = peak_bytes(world)

    def _phases(self, steps: int, reduce: bool, wait: bool) -> dict[str, float]:
        seconds = dict.fromkeys(("data_wait", *PHASES), 0.0)
        for _ in range(steps):
            marks = [time.perf_counter()]

            def mark(marks: list[float] = marks) -> None:
                if wait:
                    wait_for(self._device)
                marks.append(time.perf_counter())

            images, labels = next(self._batches)
            mark()
            self._training.run(images, labels, reduce, mark)
            for phase, begin, end in zip(seconds, marks, marks[1:]):
                seconds[phase] += (end - begin) / steps
        return seconds

    def profile(self, folder: Path, steps: int = 3) -> None:
        """Print and write the longest kernels of some steps, a chrome trace, and on a GPU a snapshot of its memory."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._device.type == "cuda":
            torch.cuda.memory._record_memory_history()
        with torch.profiler.profile() as profiler:
            self.run(steps)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        kernels = longest_kernels(profiler, self._device)
        (folder / "kernels.json").write_text(command.as_json(kernels) + "\n")
        for kernel in kernels:
            print(
                f"{kernel['share']:6.1%} {kernel['seconds'] * 1e3:9.3f} ms {kernel['calls']:5}  {kernel['name'][:90]}"
            )
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)


def longest_kernels(profiler: torch.profiler.profile, device: torch.device, count: int = 10) -> list[dict[str, Any]]:
    """The kernels (on a CPU: operators) that took the most time by themselves, and their share of that of all."""
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    of_kind = [event for event in profiler.key_averages() if event.device_type == kind]
    time_of = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    microseconds = {event.key: (getattr(event, time_of), event.count) for event in of_kind}
    total = sum(spent for spent, _ in microseconds.values())
    longest = sorted(microseconds.items(), key=lambda item: item[1][0], reverse=True)[:count]
    return [
        {"name": name, "seconds": spent / 1e6, "calls": calls, "share": spent / total}
        for name, (spent, calls) in longest
    ]


def cached(cell: Cell, world: World) -> Batches:
    """The same batch of noise again and again."""
    return itertools.repeat(noise(cell.batch, cell.image_size, world))


def loaded(cell: Cell, world: World, directory: Path, loader: str) -> Batches:
    """Batches of a prepared data set by one of the loaders, epoch after epoch.

    Raises:
        UserError: at the first batch, if the data set has fewer images.
    """
    config = cell.config(world)
    split = Dataset(directory).split("train")
    choice = choose(loader, split, config.data, world)
    geometry = training_geometry(config.data, config.augment, 0)
    built = loaders.build(choice.name, split, geometry, config.data, world, cell.batch)
    order = Order(0, np.arange(len(split)), config.batch)
    if not order.steps_per_epoch:
        raise UserError(
            f"{len(split)} training images are fewer than one batch of {config.batch}; set --batches to that or less"
        )
    for epoch in itertools.count():
        for batch in built.stream(order.slices(epoch, world.rank, world.size)):
            yield batch.images, batch.labels
