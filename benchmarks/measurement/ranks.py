"""Groups of ranks that wait for tasks, so that groups of different sizes can be measured in turns.

Each rank is a process with a GPU, or with one core that it is bound to. A group that waits uses no processor. Every answer
is the slowest rank's: the others wait for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.measurement.device_speed import reference, wait_for
from benchmarks.measurement.step import PHASES, TrainingStep, noise
from vgg_ddp.config import Config
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.errors import UserError

PhaseSeconds = dict[str, float]  # by phase of a step; the sum under "step"


@dataclass(frozen=True)
class TrainingSteps:
    """Seconds of a training step, by phase.

    Attributes:
        batch: images of each rank.
        together: whether gradients are summed over the ranks. Otherwise each rank computes by itself, all at once.
    """

    batch: int
    together: bool
    steps: int


@dataclass(frozen=True)
class AllReduces:
    """Seconds of an all-reduce of `size` bytes, nothing else being done."""

    size: int
    repeats: int


@dataclass(frozen=True)
class Reference:
    """The inverse of `device_speed.reference`, on all ranks at once."""


Task = TrainingSteps | AllReduces | Reference | Literal["stop"]


class Group:
    """Ranks that train the network of `config` and run a task together."""

    def __init__(self, size: int, config: Config) -> None:
        self.size = size
        context = get_context("forkserver")  # whose processes share neither this one's threads nor its GPU
        context.set_forkserver_preload([__name__])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank, args=(config, rank, size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, task: Task) -> PhaseSeconds:
        """The slowest rank's seconds."""
        for pipe in self._pipes:
            pipe.send(task)
        answers: list[PhaseSeconds] = [pipe.recv() for pipe in self._pipes]
        return max(answers, key=lambda seconds: seconds["step"])

    def stop(self) -> None:
        """End the ranks."""
        for pipe in self._pipes:
            with suppress(OSError):  # the rank has already ended
                pipe.send("stop")
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()


@contextmanager
def groups(sizes: list[int], config: Config) -> Iterator[dict[int, Group]]:
    """Groups of these sizes, side by side."""
    with ExitStack() as stack:
        started = {}
        for size in sizes:
            started[size] = Group(size, config)
            stack.callback(started[size].stop)
        yield started


def check_ranks(ranks: list[int], batch: int) -> None:
    """Check, before a group is started, that it can be.

    Args:
        ranks: the sizes of the groups.
        batch: images in a step, which must divide evenly over the ranks of each group.

    Raises:
        UserError: more ranks than GPUs, or a batch that the ranks do not divide.
    """
    if any(batch % count for count in ranks):
        raise UserError(f"--batch {batch} does not divide over {ranks} ranks")
    if torch.cuda.is_available() and max(ranks) > torch.cuda.device_count():
        raise UserError(f"--ranks {max(ranks)}: this host has {torch.cuda.device_count()} GPUs")


def _rank(config: Config, rank: int, size: int, port: int, pipe: Connection) -> None:
    """A rank's process: take a task, answer how long it took, until told to stop."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if not torch.cuda.is_available():
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[rank % len(allowed)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    with joined() as world:
        trainers: dict[int, _Trainer] = {}
        machine_speed = reference(world.device)
        while True:
            task: Task = pipe.recv()
            if isinstance(task, TrainingSteps):
                if task.batch not in trainers:
                    trainers[task.batch] = _Trainer(config, task.batch, world)
                pipe.send(trainers[task.batch].run(task.steps, task.together))
            elif isinstance(task, AllReduces):
                pipe.send(_all_reduces(task, world))
            elif isinstance(task, Reference):
                world.barrier()
                pipe.send({"step": 1 / machine_speed()})
            else:
                return


class _Trainer:
    """The training step on one batch in memory, timed by phase."""

    def __init__(self, config: Config, batch: int, world: World) -> None:
        self._world, self._step = world, TrainingStep(config, world)
        self._images, self._labels = noise(batch, config.data.image_size, world)

    def run(self, steps: int, together: bool) -> PhaseSeconds:
        """Mean seconds of a step; communication is in "backward"."""
        seconds = dict.fromkeys(PHASES, 0.0)
        self._world.barrier()
        for _ in range(steps):
            times = [self._now()]
            self._step.run(self._images, self._labels, together, lambda times=times: times.append(self._now()))  # type: ignore[misc]
            for phase, start, end in zip(PHASES, times, times[1:]):
                seconds[phase] += (end - start) / steps
        return {**seconds, "step": sum(seconds.values())}

    def _now(self) -> float:
        wait_for(self._world.device)
        return time.perf_counter()


def _all_reduces(task: AllReduces, world: World) -> PhaseSeconds:
    values: Any = torch.ones(task.size // 4, device=world.device)
    world.barrier()
    start = time.perf_counter()
    for _ in range(task.repeats):
        dist.all_reduce(values)
        values.fill_(1.0)  # sums of sums would overflow
    wait_for(world.device)
    return {"step": (time.perf_counter() - start) / task.repeats}
