"""NVIDIA DALI: whether it is installed, and runs here. Imports neither DALI nor torch into this process."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys

from vgg_ddp.errors import UserError

PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # for either version of CUDA
TRIAL_SECONDS = 120.0  # that its import may take, on a disk that is slow


def require(on_gpu: bool) -> None:
    """Raises a `UserError` that says why DALI does not run here, if it does not."""
    found = problem(on_gpu)
    if found:
        raise UserError(f"loader=dali does not run here: {found}; or use loader=torch")


@functools.cache
def problem(on_gpu: bool) -> str:
    """Why DALI does not run here, and what to do; "" where it does.

    Args:
        on_gpu: whether it is to decode on a GPU, whose driver must know the CUDA version that DALI was built with.
    """
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "NVIDIA DALI is not installed: pip install 'vgg_ddp[dali]'"
    driver, built = driver_cuda(), built_cuda()
    if on_gpu and driver is not None and built is not None and driver[0] < built:
        instead = "pip install 'vgg_ddp[dali-cuda12]'" if driver[0] == 12 else "install a newer driver"
        return f"NVIDIA DALI is for CUDA {built}, and the driver for CUDA {driver[0]}.{driver[1]} at most: {instead}"
    return _import_problem()


def _import_problem() -> str:
    """Why its import fails, tried in a separate process; "" if it works."""
    if "nvidia.dali.fn" in sys.modules:
        return ""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import nvidia.dali.fn"], capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"NVIDIA DALI is not imported within {TRIAL_SECONDS:g} s"
    if done.returncode == 0:
        return ""
    last = next(reversed(done.stderr.strip().splitlines()), f"it ends with code {done.returncode}")
    return f"NVIDIA DALI cannot be imported ({last})"


def built_cuda() -> int | None:
    """The major version of CUDA that the installed DALI is for; None where its package is of another name."""
    for package in PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(re.sub(r".*cuda", "", package)[:2])
    return None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver knows, (major, minor); None without a driver."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)):
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10
