"""How much memory a rank uses, and how the C library keeps it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import torch

from vgg_ddp.distributed.world import World


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks instead of giving them back to the kernel.

    Every step frees and takes the same large activations; given back, each comes again page by page: 85,000 page faults
    in a VGG-11 step of 256 images, none with this.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def used_bytes(device: torch.device) -> int:
    """What this rank uses now: on its GPU, or resident in RAM without one."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_peak_bytes(device: torch.device) -> int:
    """The most that this rank has used since it began, or since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def forget_peak(device: torch.device) -> None:
    """Let `own_peak_bytes` begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not allowed here: what is larger than all before shows all the same
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(world: World) -> int:
    """The most that any rank has used so far, known on rank 0. All ranks together."""
    peak = own_peak_bytes(world.device)
    return max((int(part) for part in world.gather(str(peak).encode())), default=peak)


def total_bytes(world: World) -> int:
    """The memory of this rank's device; without a GPU, its share of the host's RAM (of the control group's, if less)."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            total = min(total, int(limit.read_text()))
    return total // world.local_size


def available_bytes(world: World) -> int:
    """What this rank can still take of its device; without a GPU, its share of what is free on the host."""
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        return free + torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            folder = Path("/sys/fs/cgroup")
            free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()))
    return max(0, free // world.local_size)
