"""Choices that are made by measuring: trial steps on noise before the training begins."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.model import batch_statistics
from vgg_ddp.randomness import torch_seed

Trial = Callable[[nn.Module], None]
WARM_UP = 1  # trials that do not count, after a first one in which the compiler works: DDP rebuilds its buckets in them
TRIALS = 3  # that count
BEFORE_RECORDING = 11  # steps before a CUDA graph is recorded: DDP rebuilds its buckets in the first ones


def of_noise(
    config: Config,
    count: int,
    criterion: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager[Any],
    device: torch.device,
) -> Trial:
    """A forward and backward pass of `count` images of noise."""
    generator = torch.Generator().manual_seed(torch_seed(config.seed, 0, "trial images"))
    side = config.data.image_size
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    images = torch.randn(count, 3, side, side, generator=generator).to(device, memory_format=layout)
    labels = torch.zeros(count, dtype=torch.int64, device=device)

    def trial(network: nn.Module) -> None:
        with autocast:
            loss = criterion(network(images), labels)
        loss.backward()
        network.zero_grad(set_to_none=True)

    return trial


def quickest(
    candidates: Mapping[str, Callable[[], nn.Module]],
    trial: Trial,
    network: nn.Module,
    world: World,
    may_fail: Collection[str] = (),
    recorded: Collection[str] = (),
) -> tuple[str, dict[str, float], dict[str, str]]:
    """The candidate with the least median seconds of a trial, by the mean over the ranks: the same on every rank.

    Args:
        candidates: by name, what builds each around `network`. The trials leave its batch statistics as they were.
        may_fail: candidates that are passed over, on every rank, if they raise an error.
        recorded: candidates whose trials are launches of a CUDA graph.

    Returns:
        The choice; every candidate's seconds; and why a candidate was passed over, by name.
    """
    seconds = torch.full((len(candidates),), math.inf, dtype=torch.float64)
    problems: dict[str, str] = {}
    with batch_statistics.kept(network):
        for number, (name, build) in enumerate(candidates.items()):
            found = _median_seconds(build, trial, world, _recorded if name in recorded else _as_it_is)
            if isinstance(found, float):
                seconds[number] = found
            elif name in may_fail:
                problems[name] = next(iter(str(found).splitlines()), type(found).__name__)
            else:
                raise found
            found = 0.0  # an error holds the frames that it came from, and so the candidate
            gc.collect()  # whose hooks end with it
    means = (world.sum(seconds) / world.size).tolist()
    best = min(zip(means, candidates, strict=True), key=lambda pair: pair[0])[1]
    return best, dict(zip(candidates, means, strict=True)), problems


def _median_seconds(
    build: Callable[[], nn.Module],
    trial: Trial,
    world: World,
    prepared: Callable[[Callable[[], None], torch.device], Callable[[], None]],
) -> float | Exception:
    """The median seconds of a trial of what `build` builds, or the error that prevented it, such as a compiler's own."""
    problem: Exception | None = None
    try:
        candidate = build()
        with candidate.no_sync() if isinstance(candidate, DistributedDataParallel) else contextlib.nullcontext():
            trial(candidate)
    except Exception as error:
        problem = error
    # A rank that failed up to here has sent nothing: no other may go on and wait for its messages.
    if world.sum(torch.tensor([problem is not None], dtype=torch.int64)).item():
        return problem or RuntimeError("another rank failed")
    times = []
    try:
        run = prepared(partial(trial, candidate), world.device)
        for _ in range(WARM_UP + TRIALS):
            start = time.perf_counter()
            run()
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            times.append(time.perf_counter() - start)
    except Exception as error:
        return error
    return sorted(times[WARM_UP:])[TRIALS // 2]


def _as_it_is(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    return run


def _recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What launches `run` as a CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(BEFORE_RECORDING):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    return record(run, stream, torch.cuda.graph_pool_handle()).replay


def record(run: Callable[[], None], stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    """What `run` launches, as a CUDA graph whose memory is taken from `pool`.

    Other threads go on while it is recorded: those of a loader allocate pinned memory and ask for events.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        run()
    return graph
