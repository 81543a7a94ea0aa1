"""Bind a rank to the cores next to its GPU, or to a NUMA node: what it then allocates lies near as well."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vgg_ddp.distributed.world import World


def bind(world: World, root: Path = Path("/")) -> None:
    """Bind this process and its threads, where there are several nodes, and where that takes no core of a rank's share.

    Args:
        root: where /sys is.
    """
    near, sharing = _near_gpu(world, root) if world.device.type == "cuda" else _node_in_turn(world, root)
    near &= os.sched_getaffinity(0)
    if near and len(near) >= sharing * (world.host_cores // world.local_size):
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended, or a container does not allow it
                os.sched_setaffinity(int(thread.name), near)


def _near_gpu(world: World, root: Path) -> tuple[set[int], int]:
    """The cores beside this rank's GPU, and how many local ranks have theirs among them."""
    import torch

    gpus = [torch.device("cuda", rank // world.ranks_per_gpu) for rank in range(world.local_size)]
    near = _beside(world.device, root)
    return near, sum(bool(near & _beside(gpu, root)) for gpu in gpus)


def _beside(device: torch.device, root: Path) -> set[int]:
    """The cores beside a GPU, by its address: CUDA's numbers follow CUDA_VISIBLE_DEVICES, not the order of the bus."""
    import torch

    gpu: Any = torch.cuda.get_device_properties(device)  # torch's stubs do not list all of it
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    try:
        return _cpus((root / "sys/bus/pci/devices" / address / "local_cpulist").read_text())
    except OSError:  # a virtual machine may show no bus
        return set()


def _node_in_turn(world: World, root: Path) -> tuple[set[int], int]:
    """A node's cores, and how many local ranks take it: nodes are taken in turn, if each gets equally many ranks."""
    found = nodes(root)
    if len(found) < 2 or world.local_size % len(found):
        return set(), 1
    return found[world.local_rank % len(found)], world.local_size // len(found)


def nodes(root: Path = Path("/")) -> list[set[int]]:
    """The cores of each NUMA node of which this process may run on some, by the nodes' numbers."""
    folders = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda folder: int(folder.name[4:]))
    found = [_cpus((folder / "cpulist").read_text()) & os.sched_getaffinity(0) for folder in folders]
    return [cpus for cpus in found if cpus]


def _cpus(text: str) -> set[int]:
    """A kernel list such as "0-3,8" as numbers."""
    ranges = [item.split("-") for item in text.strip().split(",") if item]
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}
