"""Starts the ranks of one host and waits for them to end."""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from pathlib import Path
from typing import Literal

from vgg_ddp import cores


def ranks_of_this_host(asked: int | Literal["auto"]) -> int:
    """How many ranks to start: as asked, or one per GPU, or one per NUMA node where there is no GPU."""
    if asked != "auto":
        return asked
    import torch

    return torch.cuda.device_count() or numa_nodes()


def numa_nodes() -> int:
    """The NUMA nodes with processors that this process may run on; at least 1."""
    allowed = os.sched_getaffinity(0)
    lists = Path("/sys/devices/system/node").glob("node[0-9]*/cpulist")
    return sum(bool(allowed & _cpus(path.read_text())) for path in lists) or 1


def _cpus(text: str) -> set[int]:
    """A kernel list such as "0-3,8" as numbers."""
    ranges = [item.split("-") for item in text.strip().split(",") if item]
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}


def start(module: str, arguments: list[str], ranks: int) -> int:
    """Run `module`'s main with `arguments` on `ranks` ranks of this host; the exit code.

    A single rank runs in this process. Several run under `vgg_ddp.distributed.supervisor`, which ends all when one fails.
    """
    if ranks == 1:
        return int(importlib.import_module(module).main(arguments))
    return _start_supervised(module, arguments, ranks)


def _start_supervised(module: str, arguments: list[str], ranks: int) -> int:
    from torch.distributed.launcher.api import LaunchConfig

    from vgg_ddp.distributed import supervisor

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores.usable() // ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    return supervisor.run(config, [sys.executable, "-m", module, *arguments])
