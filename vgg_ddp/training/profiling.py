"""Where the time of a step goes: named phases for profilers, and a trace of some steps in the run's folder."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import profile, record_function, schedule

WARM_UP = 3  # steps left out first, if there are enough: memory is allocated and kernels are chosen


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """A range of this name in torch's profiler, and on a GPU in Nsight Systems (NVTX)."""
    with record_function(name), _nvtx(name):
        yield


@contextlib.contextmanager
def _nvtx(name: str) -> Iterator[None]:
    if not torch.cuda.is_initialized():
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


@contextlib.contextmanager
def traced(steps: int, left: int, file: Path) -> Iterator[Callable[[], object]]:
    """Trace `steps` of the `left` steps of a training into `file` (Chrome's format); off if either is 0.

    Yields a function to call after every step. A training that ends early leaves the trace up to that point.
    """
    if not steps or left <= 0:
        yield lambda: None
        return

    def write(trace: profile) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}")
        trace.export_chrome_trace(str(aside))
        os.replace(aside, file)

    left_out = max(min(1, left - 1), min(WARM_UP, left - steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a missing warm-up if there is only one step
        plan = schedule(wait=0, warmup=left_out, active=steps, repeat=1)
    with profile(schedule=plan, on_trace_ready=write) as trace:
        yield trace.step
