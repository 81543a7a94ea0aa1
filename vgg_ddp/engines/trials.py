"""Choices that are made by measuring: trial steps on noise before the training begins."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.randomness import torch_seed

Trial = Callable[[nn.Module], None]
WARM_UP = 2  # trials that do not count: in the first a compiler works, after it DDP rebuilds its buckets
TRIALS = 3  # that count


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
    may_fail: bool = False,
) -> tuple[str, dict[str, float], dict[str, str]]:
    """The candidate with the least median seconds of a trial, by the mean over the ranks: the same on every rank.

    Args:
        candidates: by name, what builds each around `network`. The trials leave its batch statistics as they were.
        may_fail: pass over a candidate that raises an error; the first may not.

    Returns:
        The choice; every candidate's seconds; and why a candidate was passed over on this rank, by name.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    seconds = torch.full((len(candidates),), math.inf, dtype=torch.float64)
    problems: dict[str, str] = {}
    for number, (name, build) in enumerate(candidates.items()):
        try:
            seconds[number] = _median_seconds(build(), trial, world)
        except Exception as error:  # a compiler's own, of which there are many
            if not may_fail or not number:
                raise
            problems[name] = next(iter(str(error).splitlines()), type(error).__name__)
        gc.collect()  # a candidate's hooks end with it
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    means = (world.sum(seconds) / world.size).tolist()
    best = min(zip(means, candidates, strict=True), key=lambda pair: pair[0])[1]
    return best, dict(zip(candidates, means, strict=True)), problems


def _median_seconds(candidate: nn.Module, trial: Trial, world: World) -> float:
    times = []
    for _ in range(WARM_UP + TRIALS):
        start = time.perf_counter()
        trial(candidate)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - start)
    return sorted(times[WARM_UP:])[TRIALS // 2]
