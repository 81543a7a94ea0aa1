"""A rank: a process that reads what to measure from its standard input, a line each, and prints what it measured.

python -m benchmarks.communication.rank CORE INTERFACE
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.communication.choices import ALONE, CHOICES
from benchmarks.measurement.step import TrainingStep, noise
from vgg_ddp.config import Config
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined


@dataclasses.dataclass
class Seen:
    """A rank's answer: seconds of a step and of a synchronisation, processor seconds in all, bytes sent in a step."""

    step_seconds: float
    synchronise_seconds: float
    processor_seconds: float
    bytes: float


def main(core: int, interface: str) -> None:
    """Join the other rank, and answer until the input ends."""
    keep_freed_memory()
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    with joined(timedelta(minutes=30), Devices(device="cpu")) as world:  # a core each, on machines with a GPU too
        for line in sys.stdin:
            order = json.loads(line)
            seen = measure(order, world if order["choice"] != ALONE else World(0, 1, 0, 1, world.device), interface)
            print("SEEN", json.dumps(dataclasses.asdict(seen)), flush=True)


def measure(order: dict[str, Any], world: World, interface: str) -> Seen:
    """Build the step that `order` describes, and time it."""
    config = msgspec.convert(
        {
            "network": order["network"],
            "precision": order["precision"],
            "batch": order["local_batch"] * world.size,
            "model": {"head": order["head"]},
            "data": {"image_size": order["image_size"]},
            "communication": CHOICES.get(order["choice"], {}),
        },
        Config,
    )
    training = TrainingStep(config, world)
    engine = training.engine
    images, labels = noise(order["local_batch"], order["image_size"], world)
    for _ in range(order["warm_up"]):
        training.run(images, labels)
    engine.synchronise()
    world.barrier()
    processor, sent, start = processor_seconds(), sent_bytes(interface), time.perf_counter()
    for _ in range(order["steps"]):
        training.run(images, labels)
    world.barrier()
    stepped = time.perf_counter()
    sent_in_steps = sent_bytes(interface)
    engine.synchronise()
    world.barrier()
    end = time.perf_counter()
    in_synchronise = sent_bytes(interface) - sent_in_steps
    every = config.communication.synchronise_every
    return Seen(
        (stepped - start) / order["steps"],
        end - stepped if every > 1 else 0.0,
        processor_seconds() - processor,
        (sent_in_steps - sent) / order["steps"] + (in_synchronise / every if every > 1 else 0.0),
    )


def processor_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def sent_bytes(interface: str) -> int:
    """The bytes that the interface of this network namespace has sent so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == interface:
            return int(fields.split()[8])
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
