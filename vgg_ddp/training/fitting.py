"""The largest micro-batch whose step fits into memory, found by trying larger and larger ones (`fit_memory`).

A step's memory grows linearly with its images, so two trials predict what the next one needs, and sizes that would
not fit are not tried. The global batch stays as it is: each rank's local batch is divided into more micro-batches.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from vgg_ddp.config import Config, load
from vgg_ddp.distributed import memory
from vgg_ddp.distributed.devices import device_names
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.ddp import DdpEngine
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json

SMALLEST = 8  # images of the first try; the next larger size that divides the local batch, where 8 does not


def fitted(
    config: Config, network: Callable[[], nn.Module], run: RunDirectory, world: World
) -> tuple[Config, dict[str, Any]]:
    """The configuration with as many micro-batches as fit, and what was measured. All ranks together.

    A run continued on as many ranks keeps its number of micro-batches where possible, for bitwise equal results.

    Args:
        network: builds a network for the trials.

    Raises:
        UserError: not even the smallest micro-batch fits.
    """
    if not config.fit_memory:
        return config, {}
    local_batch = config.local_batch(world.size)
    largest = local_batch // config.accumulation
    sizes = [n for n in range(1, largest + 1) if local_batch % n == 0 and _may_be(config, local_batch // n, world)]
    stored = int(world.from_main(lambda: str(_stored(run, world)).encode()))
    if stored in [local_batch // n for n in sizes]:
        return msgspec.structs.replace(config, accumulation=stored), {}
    limit = memory.used_bytes(world.device) + config.memory_share * memory.available_bytes(world)
    fits, peaks = _tries(_Step(config, network(), largest, world), sizes, limit)
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    agreed = _least(world, fits)
    if not agreed:
        raise UserError(
            f"a step of {sizes[0]} images needs more than the {limit / 1e9:.1f} GB that are free here; "
            "use a smaller network, smaller images, or recompute=stages"
        )
    chosen = local_batch // agreed
    return msgspec.structs.replace(config, accumulation=chosen), {
        "chosen": chosen,
        "limit_bytes": limit,
        "bytes": peaks,
    }


def _stored(run: RunDirectory, world: World) -> int:
    """The micro-batches that this run was fitted to on as many ranks and the same kind of device as now; else 0."""
    if not run.config.exists():
        return 0
    before = load(run.config, [])
    then = read_json(run.environment) or {}
    as_now = then.get("world_size") == world.size and set(then.get("devices", ())) == set(device_names(world.device))
    return before.accumulation if before.fit_memory and as_now else 0


def _may_be(config: Config, accumulation: int, world: World) -> bool:
    """Whether a rank can take its local batch in so many micro-batches, by the rules of the configuration."""
    try:
        msgspec.structs.replace(config, accumulation=accumulation).local_batch(world.size)
    except UserError:
        return False
    return True


def _tries(step: _Step, sizes: list[int], limit: float) -> tuple[int, dict[str, int]]:
    """The largest of `sizes` whose step was tried and fits, 0 if none; and the peak bytes of each that fits."""
    peaks: dict[int, int] = {}
    size = next((n for n in sizes if n >= SMALLEST), sizes[-1])
    while size and size not in peaks:
        peak = step.peak_bytes(size)
        if peak is None or peak > limit:
            sizes = [n for n in sizes if n < size]
        else:
            peaks[size] = peak
        size = _next(sizes, peaks, limit)
    return max(peaks, default=0), {str(size): peak for size, peak in peaks.items()}


def _next(sizes: list[int], peaks: dict[int, int], limit: float) -> int:
    """What to try next: up to twice the largest that fits, if that is expected to fit; the largest itself when done."""
    if not peaks:
        return sizes[len(sizes) // 2] if sizes else 0
    known = sorted(peaks)
    largest = known[-1]
    slope = 0.0
    if len(known) > 1:
        slope = (peaks[largest] - peaks[known[-2]]) / (largest - known[-2])
    most = largest + (limit - peaks[largest]) / slope if slope > 0 else math.inf
    return max(n for n in (largest, *sizes) if n == largest or largest < n <= min(2 * largest, most))


class _Step:
    """A step of one rank that exchanges nothing with the others: each may try other sizes."""

    def __init__(self, config: Config, network: nn.Module, largest: int, world: World) -> None:
        self._config, self._device = msgspec.structs.replace(config, compile=False), world.device
        trained_on = config.loss.trained_on(largest)
        self._engine = DdpEngine(self._config, network, world, reduce_gradients=False, micro_batch=trained_on)
        sharp = config.optimizer.sharpness_radius > 0
        copies = (world.size > 1) + (config.ema > 0) + sharp  # gradients as DDP sends them; averaged weights; weights
        images = config.loss.trained_on(config.local_batch(world.size))
        kept = sharp * images * 3 * config.data.image_size**2  # for the second pass
        self._beside = 4 * (copies * sum(parameter.numel() for parameter in network.parameters()) + kept)

    def peak_bytes(self, images: int) -> int | None:
        """The most memory that a step of so many images takes; None where it does not fit."""
        side, device = self._config.data.image_size, self._device
        layout = torch.channels_last if self._config.channels_last else torch.contiguous_format
        memory.reset_peak(device)
        try:
            pixels = torch.zeros(images, 3, side, side, device=device).to(memory_format=layout)
            labels = torch.zeros(images, dtype=torch.int64, device=device)
            chosen = self._config.loss.trained_on(images)
            looked_at = min(side, self._config.loss.hardest_size or side)
            for last in (False, True):  # the second micro-batch meets the gradients of the first
                if chosen < images:  # of all of which the loss is looked at
                    with torch.no_grad():
                        self._engine.forward(pixels[:, :, :looked_at, :looked_at], labels, last=False)
                loss, _ = self._engine.forward(pixels[:chosen], labels[:chosen], last=last)
                self._engine.backward(loss)
            self._engine.step()
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            return None
        return memory.own_peak_bytes(device) + self._beside


def _least(world: World, value: int) -> int:
    """The smallest of the ranks' values, on every rank."""
    values = [int(data) for data in world.gather(str(value).encode())]
    return int(world.broadcast(str(min(values, default=0)).encode()))
