"""The rates that a device reaches by itself: a large matrix product, a large copy, and the reference made of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measurement.arithmetic import arithmetic
from vgg_ddp.optim.precision import fastest

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def chosen_precision(name: str, device: torch.device) -> str:
    """The precision of this name; for "auto" the one that `device` computes in fastest."""
    return fastest(device)[0] if name == "auto" else name


def matrix_product(device: torch.device, precision: str = "auto", seconds: float = 0.2) -> Callable[[], float]:
    """FLOP/s of a large matrix product, repeated for `seconds` at each call."""
    size = 8192 if device.type == "cuda" else 1024
    precision = chosen_precision(precision, device)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, DTYPES[precision]) for _ in range(2))
    repeat = _repeated(lambda: left @ right, device, seconds)

    def rate() -> float:
        with arithmetic(precision):
            return 2 * size**3 * repeat()

    return rate


def copy(device: torch.device, seconds: float = 0.2) -> Callable[[], float]:
    """Bytes/s that a copy larger than the caches reads and writes, repeated for `seconds` at each call."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    repeat = _repeated(lambda: target.copy_(source), device, seconds)
    return lambda: 2 * source.nbytes * repeat()


def reference(device: torch.device) -> Callable[[], float]:
    """A side for `rounds.in_turns` that depends on the machine alone, on no version of the code.

    Rates divided by it can be compared with those of another day. It is the geometric mean of a large matrix product and,
    with a fifth of the weight, a large copy: neighbours on a shared machine take caches and memory as well as cores, and of
    the weights tried (0 to 0.3) a fifth left the least scatter between runs of a training step.
    """
    product, copied = matrix_product(device), copy(device, seconds=0.1)
    return lambda: product() ** 0.8 * copied() ** 0.2


def _repeated(work: Callable[[], Any], device: torch.device, seconds: float) -> Callable[[], float]:
    """How often `work` is done in a second, tried for `seconds`."""

    def rate() -> float:
        start, times = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            work()
            wait_for(device)
            times += 1
        return times / (time.perf_counter() - start)

    return rate


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all the work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
