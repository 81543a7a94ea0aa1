"""How much memory a rank uses and may use, and glibc's settings for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from vgg_ddp.cores import control_groups
from vgg_ddp.distributed.world import World


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of returning them to the kernel.

    Every step frees and allocates the same large activations; without this, a VGG-11 step of 256 images costs 85,000 page
    faults, with it none.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def ran_out(error: Exception) -> bool:
    """Whether `error` says that there was no memory for an allocation, on the host or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't alloc" in str(error)


def advice(world: World) -> str:
    """What to do for a rank that ran out of memory where it is now."""
    phase = world.activity.seen().phase
    what, remedy = {
        "fetch": ("the images of a step", "data.workers=0 or a smaller batch"),
        "step": (
            "a step",
            "fit_memory=true, which finds how many images fit at once, a larger accumulation, or a smaller batch",
        ),
        "validate": ("the validation", "a smaller evaluate.batch"),
        "evaluate": ("the evaluation", "a smaller evaluate.batch"),
    }.get(phase, ("what it is to do", "a smaller network or a machine with more"))
    place = "its GPU has" if world.device.type == "cuda" else "it has"
    return f"rank {world.rank} ran out of memory: {place} too little for {what}; use {remedy}"


def used_bytes(device: torch.device) -> int:
    """Bytes that this rank uses now: allocated on its GPU, or, without one, its resident set in RAM."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_peak_bytes(device: torch.device) -> int:
    """The largest `used_bytes` of this rank since its start, or since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def reset_peak(device: torch.device) -> None:
    """Start `own_peak_bytes` again from the present use, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not allowed here: only a new maximum is seen then
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(world: World) -> int:
    """The largest `own_peak_bytes` of all ranks, on rank 0 (elsewhere this rank's own). A collective call."""
    peak = own_peak_bytes(world.device)
    return max((int(text) for text in world.gather(str(peak).encode())), default=peak)


def total_bytes(world: World, root: Path = Path("/")) -> int:
    """Bytes of this rank's part of its GPU's memory, or without a GPU, of that of the host (or control group).

    Args:
        root: where /proc and /sys are.
    """
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory // world.ranks_per_gpu
    return min([_of_host(root, "MemTotal"), *(limit for limit, _ in _limits(root))]) // world.local_size


def available_bytes(world: World, root: Path = Path("/")) -> int:
    """Bytes that this rank can still allocate: its part of what is free on its GPU, or else on the host.

    Args:
        root: where /proc and /sys are.
    """
    if world.device.type == "cuda":
        free = torch.cuda.mem_get_info(world.device)[0] // world.ranks_per_gpu
        return free + torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    free = min([_of_host(root, "MemAvailable"), *(limit - used for limit, used in _limits(root))])
    return max(0, free // world.local_size)


def _of_host(root: Path, name: str) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The memory limit of each control group of this process that has one, and what is used of it, in bytes.

    Cached files are not counted as used: the kernel drops them where memory is asked for.
    """
    for folder in control_groups(root, {"": "", "memory": "memory"}):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield most, now - cached
