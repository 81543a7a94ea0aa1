"""Groups of ranks that wait to be told what to do, so that groups of different sizes can be measured in turns.

Each rank is a process with one share of the machine: a GPU, or one core that it is bound to. While a group waits it uses no
processor. Every answer is the slowest rank's: the others wait for it.
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

from benchmarks.measurement import measuring
from benchmarks.measurement.step import TrainingStep, noise
from vgg_ddp.config import Config
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined

Parts = dict[str, float]


@dataclass(frozen=True)
class TrainingSteps:
    """Seconds of a training step, in parts.

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
    """The inverse of `measuring.reference`, on all ranks at once."""


Task = TrainingSteps | AllReduces | Reference | Literal["stop"]


class Group:
    """Ranks that train the network of `config` and run a task together."""

    def __init__(self, size: int, config: Config) -> None:
        self.size = size
        context = get_context("spawn")  # a forked child would share the parent's threads and GPU
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

    def run(self, task: Task) -> Parts:
        """The slowest rank's seconds, by part; the whole under "step"."""
        for pipe in self._pipes:
            pipe.send(task)
        answers: list[Parts] = [pipe.recv() for pipe in self._pipes]
        return max(answers, key=lambda parts: parts["step"])

    def stop(self) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # a rank that has ended is what is wanted
                pipe.send("stop")
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()


@contextmanager
def groups(sizes: list[int], config: Config) -> Iterator[dict[int, Group]]:
    """Groups of these sizes, side by side."""
    with ExitStack() as stack:
        found = {}
        for size in sizes:
            found[size] = Group(size, config)
            stack.callback(found[size].stop)
        yield found


def _rank(config: Config, rank: int, size: int, port: int, pipe: Connection) -> None:
    """One rank's life: take a task, say how long it took."""
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
        reference = measuring.reference(world.device)
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
                pipe.send({"step": 1 / reference()})
            else:
                return


class _Trainer:
    """The step on one batch that lies in memory, timed part by part."""

    def __init__(self, config: Config, batch: int, world: World) -> None:
        self._world, self._step = world, TrainingStep(config, world)
        self._images, self._labels = noise(batch, config.data.image_size, world)

    def run(self, steps: int, together: bool) -> Parts:
        """Mean seconds of a step; "forward", "backward" (with the communication in it) and "update" add up to it."""
        parts = {"forward": 0.0, "backward": 0.0, "update": 0.0}
        self._world.barrier()
        for _ in range(steps):
            times = [self._now()]
            loss = self._step.forward(self._images, self._labels, last=together)
            times.append(self._now())
            self._step.engine.backward(loss)
            times.append(self._now())
            self._step.engine.step()
            times.append(self._now())
            for name, start, end in zip(parts, times, times[1:]):
                parts[name] += (end - start) / steps
        return {**parts, "step": sum(parts.values())}

    def _now(self) -> float:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return time.perf_counter()


def _all_reduces(task: AllReduces, world: World) -> Parts:
    values: Any = torch.ones(task.size // 4, device=world.device)
    world.barrier()
    start = time.perf_counter()
    for _ in range(task.repeats):
        dist.all_reduce(values)
        values.fill_(1.0)  # sums of sums would overflow
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return {"step": (time.perf_counter() - start) / task.repeats}
