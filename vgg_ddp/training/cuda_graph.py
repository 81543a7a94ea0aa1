"""The training step as a CUDA graph: recorded once, then launched as one, so that the host does nothing for its kernels.

What differs between steps (the batch, its place in the order, the learning rate) is passed in memory at fixed
addresses; dropout's seed is torch's own, which a graph reads at each launch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import torch

from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.augment.pixels import on_device
from vgg_ddp.config import Config
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import Engine
from vgg_ddp.engines.compilation import GRAPH, unrecordable
from vgg_ddp.engines.trials import BEFORE_RECORDING, record
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch

# Steps that the host may launch ahead of the device. To the driver a graph is only a few operations, so its queue
# would hold hundreds: the host would wait for all at once, seem to hang, and notice a stop request only afterwards.
STEPS_AHEAD = 4

Shape = tuple[int, torch.Size, int | None]  # of a batch: images in it, their shape, the size they are shrunk to
Step = Callable[[Batch, int | None], None]  # of a batch, and the size that its images are shrunk to


def recorded(step: Step, config: Config, world: World) -> Step:
    """`step` as a CUDA graph where `compile` is "graph", else itself."""
    return CudaGraphStep(step, world.device) if config.compile == "graph" else step


def check(config: Config, world: World) -> None:
    """Raises a `UserError` where `compile` is "graph" and the step cannot be recorded."""
    if config.compile != "graph":
        return
    if name := unrecordable(config, world):
        raise UserError(f"compile=graph cannot record {name}: set compile=auto")
    if world.device.type != "cuda":
        raise UserError("compile=graph records a CUDA graph, which needs an NVIDIA GPU: set compile=auto")


def settled(config: Config, engine: Engine) -> Config:
    """The configuration with `compile` "graph" where the engine's trials chose that."""
    chosen = engine.measured.get("compile", {}).get("chosen")
    return msgspec.structs.replace(config, compile=GRAPH) if chosen == GRAPH else config


class StaticBatch:
    """Static memory for batches of one shape; each batch overwrites the one before it."""

    def __init__(self, batch: Batch) -> None:
        self._steps = torch.arange(len(batch), device=batch.images.device)
        self._piece = DeviceSlice(torch.zeros_like(self._steps[0]), self._steps.clone(), self._steps.clone())
        self._batch = Batch(torch.empty_like(batch.images), torch.empty_like(batch.labels), self._piece)

    def load(self, batch: Batch) -> Batch:
        """Copy `batch` into this memory, and return it from there."""
        assert isinstance(batch.slice, Slice)
        self._batch.images.copy_(batch.images)
        self._batch.labels.copy_(batch.labels)
        self._piece.samples.copy_(on_device(self._steps, batch.samples))
        torch.add(self._steps, batch.slice.start, out=self._piece.position)
        self._piece.epoch.fill_(batch.slice.epoch)
        return self._batch


class CudaGraphStep:
    """Takes the first steps of each shape eagerly, on a side stream, then records one and launches it from then on."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()  # one graph at a time uses it, so those of all shapes share it
        self._launched: deque[torch.cuda.Event] = deque()
        self._batches: dict[Shape, StaticBatch] = {}
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._taken: dict[Shape, int] = {}

    def __call__(self, batch: Batch, side: int | None) -> None:
        """One step."""
        shape = (len(batch), batch.images.shape, side)
        if shape not in self._batches:
            self._batches[shape], self._taken[shape] = StaticBatch(batch), 0
        static = self._batches[shape].load(batch)
        self._taken[shape] += 1
        if self._taken[shape] <= BEFORE_RECORDING:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(static, side)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if shape not in self._graphs:
            self._graphs[shape] = record(lambda: self._step(static, side), self._stream, self._pool)
        self._graphs[shape].replay()
        self._launched.append(torch.cuda.Event(blocking=True))
        self._launched[-1].record()
        if len(self._launched) > STEPS_AHEAD:
            self._launched.popleft().synchronize()
