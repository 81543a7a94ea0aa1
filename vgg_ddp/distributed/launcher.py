"""Starts the ranks of one host and waits for them to end."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator

from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.distributed import numa, supervisor
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.fork_server import ForkServer
from vgg_ddp.distributed.supervisor import Task
from vgg_ddp.run.console import say

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def ranks_of_this_host(config: Config) -> int:
    """How many ranks to start: as asked, or as many as its GPUs take, or one per NUMA node, at most one a core, without."""
    if config.nproc != "auto":
        return config.nproc
    return Devices.of(config).gpus() * config.ranks_per_gpu or min(len(numa.nodes()), cores.usable()) or 1


@contextlib.contextmanager
def own_ranks() -> Iterator[None]:
    """Inside the context, the environment names no ranks: the only ranks are those started here.

    In a container, or a shell below another launcher, it may describe ranks that are not ours.
    """
    left = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
    named = " ".join(f"{name}={left[name]}" for name in ("RANK", "WORLD_SIZE") if name in left)
    if named:
        say(f"{named} in the environment left aside: ranks are started here; under torchrun, start -m vgg_ddp.train")
    try:
        yield
    finally:
        os.environ.update(left)


def start(task: Task, ranks: int) -> int:
    """Run a task on `ranks` ranks of this host; the exit code.

    They run under `vgg_ddp.distributed.supervisor`, which ends all when one fails, and starts them again where the task allows
    it. A single rank of a task without restarts runs in this process.
    """
    with own_ranks():
        if ranks == 1 and not task.restarts:
            return int(importlib.import_module(task.module).main(task.arguments))
        return _start_supervised(task, ranks)


def _start_supervised(task: Task, ranks: int) -> int:
    if ranks > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores.usable() // ranks)))
    with ForkServer(task.module) as server:  # which imports torch, while this process does so for several ranks
        if ranks == 1:
            return supervisor.run(task, ranks, None, server)
        from vgg_ddp.distributed import rendezvous

        return supervisor.run(task, ranks, rendezvous.of_one_host(), server)
