"""Joules that the device has used: NVIDIA's counter of a GPU (NVML), or the processor's (RAPL) where it can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


def meter(device: torch.device, powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """Joules so far, at each call; None where there is no counter. A processor's are those of all its cores."""
    return _of_gpu(device) if device.type == "cuda" else _of_processor(powercap)


def _of_gpu(device: torch.device) -> Callable[[], float] | None:
    """NVML's total energy since the driver was loaded (Volta and newer)."""
    with contextlib.suppress(Exception):  # no NVML, or a GPU that does not count
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    return None


def _of_processor(powercap: Path) -> Callable[[], float] | None:
    """The sum over packages. A counter wraps around at its `max_energy_range_uj`, which is then added."""
    files = sorted(powercap.glob("intel-rapl:?/energy_uj"))  # AMD's processors are under that name as well
    try:
        last = [int(file.read_text()) for file in files]
        ranges = [int(file.with_name("max_energy_range_uj").read_text()) for file in files]
    except (OSError, ValueError):  # readable by root alone
        return None
    if not files:
        return None
    total = 0

    def joules() -> float:
        nonlocal total
        for number, file in enumerate(files):
            now = int(file.read_text())
            total += (now - last[number]) % ranges[number]
            last[number] = now
        return total / 1e6

    return joules
