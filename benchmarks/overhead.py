"""What the training loop costs beside forward, backward and update: waiting for data, inputs, schedules, metrics, the log.

    python -m benchmarks.overhead [--config configs/vgg16_cifar10.yaml] [--source digits] [--json FILE] [key=value ...]

The loop itself is run, as `vgg-ddp train` runs it, with its engine's three calls timed. On a GPU each call is waited for, so
that the host's own time cannot hide behind the device's; the share there is an upper bound.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import measuring, outcome
from vgg_ddp.config import Config, load
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.engines import Engine
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import MetricsLog
from vgg_ddp.train import train
from vgg_ddp.training import parts
from vgg_ddp.training.job import Job, build_job
from vgg_ddp.training.recorder import Recorder

CALLS = ("forward", "backward", "step")


class Timed:
    """An engine that notes the seconds of its calls; everything else is the engine's own."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine, self._device = engine, device
        self.seconds = dict.fromkeys(CALLS, 0.0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        return self._timed(name, found) if name in CALLS else found

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


class Loop:
    """The training loop of a configuration, some steps at a time."""

    def __init__(self, config: Config, folder: Path, world: World) -> None:
        config, _ = precision.resolve(config, world.device)
        precision.set_arithmetic(config)
        run = RunDirectory(str(folder / "run"))
        run.checkpoints.mkdir(parents=True)
        dataset, _ = parts.open_dataset(config, world)
        job = build_job(config, dataset, run, world)
        self._engine = Timed(job.engine, world.device)
        self._job: Job = dataclasses.replace(job, engine=self._engine)
        self._state = State(identity={})
        self._log = run.metrics

    def run(self, steps: int) -> dict[str, float]:
        """Train so many steps more; seconds of a step in the engine's calls, waiting for data, and all in all."""
        state, job = self._state, dataclasses.replace(self._job, total_steps=self._state.step + steps)
        before = self._seconds()
        with MetricsLog(self._log) as log, TrainingProgress(job.total_steps, state.step, shown=False) as progress:
            steps_per_epoch = job.data.order.steps_per_epoch
            recorder = Recorder(state, job.world, job.config.batch, steps_per_epoch, job.total_steps, log, progress)
            train(job, state, recorder)
        after = self._seconds()
        return {name: (after[name] - before[name]) / steps for name in after}

    def _seconds(self) -> dict[str, float]:
        """All steps so far, by what they went into."""
        calls = {f"engine.{name}": value for name, value in self._engine.seconds.items()}
        return {"step": self._state.step_seconds, "data_wait": self._state.wait_seconds, **calls}


def measure(options: Any, config: Config, world: World) -> list[dict[str, Any]]:
    """One row: the share of the step that is not the engine's, and its parts."""
    with tempfile.TemporaryDirectory() as place:
        loop = Loop(config, Path(place), world)
        reference = measuring.reference(world.device)
        loop.run(options.steps)
        found: list[dict[str, float]] = []
        speed = []
        for _ in range(options.rounds):
            speed.append(reference())
            found.append(loop.run(options.steps))
    shares = [1 - sum(seconds[f"engine.{name}"] for name in CALLS) / seconds["step"] for seconds in found]
    medians = {name: statistics.median(seconds[name] for seconds in found) for name in found[0]}
    row = measuring.summary(shares, "overhead", speed, higher_is_better=False)
    name = f"{config.network} {config.batch} {config.precision}"
    return [{"name": name, **row, "seconds": medians, "loader": config.loader, "world_size": world.size}]


def main() -> None:
    parser = measuring.parser_of("overhead", __doc__)
    parser.add_argument("--config", default="configs/vgg16_cifar10.yaml", help="(default: %(default)s)")
    parser.add_argument("--source", default="digits", help="data.source (default: digits)")
    parser.add_argument("--steps", type=int, default=4, help="steps in a round (default: 4)")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="keys to set, as vgg-ddp train takes them")
    options = parser.parse_intermixed_args()
    keep_freed_memory()
    config = load(
        options.config,
        [f"data.source={options.source}", "data.validation=0", "evaluate.checkpoint=last", *options.keys],
    )
    with joined() as world:
        torch.set_num_threads(max(1, options.threads // world.local_size))
        rows = measure(options, config, world)
        if not world.is_main:
            sys.exit(0)
    for row in rows:
        seconds = row["seconds"]
        parts = "  ".join(f"{name} {value * 1e3:.2f}" for name, value in seconds.items())
        low, high = row["interval"]
        print(f"{row['name']:<28} {row['overhead']:.2%} of the step ({low:.2%} to {high:.2%})   ms of a step: {parts}")
    outcome.keep(options, "overhead", rows, "overhead", "share of the step outside forward, backward and update")


if __name__ == "__main__":
    measuring.exit_after(main)
