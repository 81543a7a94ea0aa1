"""Which devices the ranks of a host compute on: a GPU each, GPUs that they share, or the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.errors import UserError

if TYPE_CHECKING:
    import torch


class Devices(msgspec.Struct, frozen=True):
    """What a configuration says of devices: its keys of these names. Importing this imports no torch."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks_per_gpu: int = 1

    @staticmethod
    def of(config: Config) -> Devices:
        """The keys of a whole configuration."""
        return Devices(config.device, config.ranks_per_gpu)

    @property
    def backend(self) -> str:
        """The communication backends; gloo for GPUs too if ranks share one, which NCCL refuses."""
        return "cpu:gloo,cuda:gloo" if self.ranks_per_gpu > 1 else "cpu:gloo,cuda:nccl"

    def gpus(self) -> int:
        """How many GPUs of this host are computed on; 0: the CPU is.

        Raises:
            UserError: GPUs were asked for, and there is none.
        """
        if self.device == "cpu" or (self.device == "auto" and "torch" not in sys.modules and not _has_driver()):
            return 0
        import torch

        with warnings.catch_warnings(record=True) as said:  # by torch, where there is a GPU that it cannot use
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count and self.device == "cuda":
            reason = f": {said[0].message}" if said else ""
            raise UserError(f"device=cuda, and torch {torch.__version__} finds no GPU here{reason}; set device=cpu")
        return count

    def check(self, ranks: int) -> None:
        """Raises a `UserError` if so many ranks do not fit on the GPUs of this host."""
        gpus = self.gpus()
        if gpus and ranks > gpus * self.ranks_per_gpu:
            raise UserError(
                f"{ranks} ranks on a host with {gpus} GPUs; set nproc to {gpus * self.ranks_per_gpu} or less, or "
                f"device=cpu, or ranks_per_gpu={-(-ranks // gpus)} to have them share (slow: to test and rehearse)"
            )

    def of_rank(self, local_rank: int) -> torch.device:
        """The device of a local rank."""
        import torch

        return torch.device("cuda", local_rank // self.ranks_per_gpu) if self.gpus() else torch.device("cpu")


def device_names(used: torch.device | None = None) -> list[str]:
    """The GPUs' names, or the processor's where there is none or it is `used`."""
    import torch

    if torch.cuda.is_available() and (used is None or used.type == "cuda"):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [_processor()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _has_driver() -> bool:
    """Whether there may be a GPU driver, without which torch finds no GPU; takes seconds less than asking torch."""
    if any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))):  # NVIDIA's, Windows's, AMD's
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
