"""What the training loop adds to forward, backward and update: waiting for data, inputs, schedules, metrics, the log.

    python -m benchmarks.overhead [--config configs/vgg16_cifar10.yaml] [--source digits] [--json FILE] [key=value ...]

It runs the loop as `vgg-ddp train` does, with the engine's three calls timed. On a GPU the host waits for the device
after each call, so that the device's time does not hide the host's; the share is an upper bound there.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import wait_for
from vgg_ddp.config import Config, load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.settling import settle
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.engines import Engine
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import MetricsLog
from vgg_ddp.train import train
from vgg_ddp.training.job import Job, build_job
from vgg_ddp.training.recorder import Recorder
from vgg_ddp.training.stopping import StopRequest

CALLS = ("forward", "backward", "step")


class Timed:
    """An engine that adds up the seconds of its calls; everything else is the engine's own."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine, self._device = engine, device
        self.seconds = dict.fromkeys(CALLS, 0.0)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._engine, name)
        return self._timed(name, attribute) if name in CALLS else attribute

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            wait_for(self._device)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


class WholeRecorder(Recorder):
    """A recorder that also counts the time for writing its rows.

    Attributes:
        seconds: of all steps in rows so far, including the writing of those rows, which `State.step_seconds` excludes.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds = 0.0

    def row(self) -> None:
        """Write the steps since the last row, if there are any; see `Recorder.row`."""
        state = self._state
        in_steps, before = state.step_seconds, state.seconds
        super().row()
        if state.step_seconds > in_steps:  # otherwise no step was taken, and the time is that of a checkpoint, say
            self.seconds += state.seconds - before


class Loop:
    """The training loop of a resolved configuration, some steps at a time."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path, world: World) -> None:
        run = RunDirectory(str(folder / "run"))
        run.checkpoints.mkdir(parents=True)
        job = build_job(config, dataset, run, world)
        self._engine = Timed(job.engine, world.device)
        self._job: Job = dataclasses.replace(job, engine=self._engine)
        self._state, self._step_seconds = State(identity={}), 0.0
        self._log = run.metrics

    def run(self, steps: int) -> dict[str, float]:
        """Train `steps` more; seconds of a step: in the engine's calls, waiting for data, and in total with the log."""
        state, job = self._state, dataclasses.replace(self._job, total_steps=self._state.step + steps)
        before = self._seconds()
        with MetricsLog(self._log) as log, TrainingProgress(job.total_steps, state.step, shown=False) as progress:
            steps_per_epoch = job.data.order.steps_per_epoch
            recorder = WholeRecorder(
                state, job.world, job.config.batch, steps_per_epoch, job.total_steps, log, progress
            )
            with StopRequest(job.world, job.config.log.every_steps) as stop, job.saver:
                train(job, state, recorder, stop)
        self._step_seconds += recorder.seconds
        after = self._seconds()
        return {name: (after[name] - before[name]) / steps for name in after}

    def _seconds(self) -> dict[str, float]:
        """Of all steps so far."""
        calls = {f"engine.{name}": value for name, value in self._engine.seconds.items()}
        return {"step": self._step_seconds, "data_wait": self._state.wait_seconds, **calls}


def measure(options: Namespace, config: Config, world: World) -> list[dict[str, Any]]:
    """One row: the share of the step outside the engine's calls, and the seconds of each."""
    dataset = Dataset(ensure(config.data, print)[0])
    config, _ = settle(config, dataset)
    config, _ = precision.set_arithmetic(config, world.device, world.of_all)
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        loop = Loop(config, dataset, Path(place), world)
        loop.run(options.steps)
        for _ in range(options.rounds):
            seconds.append(loop.run(options.steps))
    shares = [1 - sum(s[f"engine.{name}"] for name in CALLS) / s["step"] for s in seconds]
    return [
        {
            "name": f"{config.network} {config.batch} {config.precision}",
            **rounds.summary(shares, "overhead", higher_is_better=False),
            "seconds": {name: statistics.median(s[name] for s in seconds) for name in seconds[0]},
            "image_size": config.data.image_size,
            "loader": config.loader,
            "world_size": world.size,
        }
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the share and the milliseconds of a step."""
    for row in rows:
        milliseconds = "  ".join(f"{name} {value * 1e3:.2f}" for name, value in row["seconds"].items())
        low, high = row["interval"]
        print(
            f"{row['name']:<28} {row['overhead']:.2%} of the step ({low:.2%} to {high:.2%})   "
            f"ms of a step: {milliseconds}"
        )


def main() -> None:
    """Measure on every rank that torchrun started; print and keep the rows on the first."""
    parser = command.parser("overhead", __doc__)
    parser.add_argument("--config", default="configs/vgg16_cifar10.yaml", help="(default: %(default)s)")
    parser.add_argument("--source", default="digits", help="data.source (default: digits)")
    parser.add_argument("--steps", type=command.count, default=4, help="steps in a round (default: 4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args()
    keep_freed_memory()
    overrides = [f"data.source={options.source}", "data.validation=0", "evaluate.checkpoint=last", *options.overrides]
    config = load(options.config, overrides)
    with joined() as world:
        torch.set_num_threads(max(1, options.threads // world.local_size))
        rows = measure(options, config, world)
        if world.is_main:
            show(rows)
            command.keep(options, rows, "overhead", "share of the step outside forward, backward and update")


if __name__ == "__main__":
    command.run(main)
