"""How gradients are averaged over the ranks while the backward pass runs: DDP, the size of its buckets, their compression."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.compression import CastCompression, NoCompression
from vgg_ddp.engines.powersgd import PowerSgd
from vgg_ddp.engines.trials import Trial, quickest
from vgg_ddp.model import batch_statistics

SIZES_OF_EACH_BUCKET = "bucket_cap_mb_list" in inspect.signature(DistributedDataParallel).parameters  # torch 2.14 on


@dataclass(frozen=True)
class Buckets:
    """Sizes of DDP's gradient buckets, MiB: the first that is reduced in a backward pass, and all others."""

    size: float
    first: float

    @property
    def name(self) -> str:
        """For the record of a trial."""
        return f"{self.size:g}, first {self.first:g}"

    @property
    def possible(self) -> bool:
        """Whether this torch can make them."""
        return SIZES_OF_EACH_BUCKET or self == DDP_DEFAULT or self.first == self.size

    def arguments(self) -> dict[str, Any]:
        """For DDP's constructor."""
        if self == DDP_DEFAULT:
            return {}
        return (
            {"bucket_cap_mb": self.size} if self.first == self.size else {"bucket_cap_mb_list": [self.first, self.size]}
        )


DDP_DEFAULT = Buckets(25.0, 1.0)
# What "auto" chooses from: few buckets have less overhead, many begin earlier and leave less to wait for at the end.
CANDIDATES = (DDP_DEFAULT, Buckets(25.0, 25.0), Buckets(8.0, 1.0), Buckets(1024.0, 1024.0))


class NoReduction:
    """Gradients stay each rank's own. The interface of gradient reduction.

    Attributes:
        measured: what was chosen by measuring, by config key.
    """

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}

    def around(self, network: nn.Module) -> nn.Module:
        """Wrap `network`: what to call in the forward pass in its place. Called once."""
        return network

    def rehearsed(self, network: nn.Module) -> nn.Module:
        """The same for a trial, of which nothing is kept. Called any number of times."""
        return network

    def only_if(self, last: bool) -> AbstractContextManager[Any]:
        """For a forward pass: the backward pass of this micro-batch reduces the accumulated gradients if it is the `last`."""
        return contextlib.nullcontext()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps of it; see `NoCompression.state`."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from a saved state."""


class DdpReduction(NoReduction):
    """DistributedDataParallel around the network, with the buckets and the compression that `communication` names."""

    def __init__(
        self,
        network: nn.Module,
        parameters: dict[str, nn.Parameter],
        config: Config,
        trial: Callable[[], Trial],
        world: World,
    ) -> None:
        """`parameters`: those that PowerSGD keeps state of, by name; `trial`: a step, to choose and to build buckets."""
        self._build_compression, self._world = partial(_compression, config, parameters, world), world
        self._trial = trial
        wanted = config.communication.bucket_mb
        self._buckets, self.measured = _buckets(wanted, network, self._build_compression, trial, world)
        self._compression = self._build_compression()

    def around(self, network: nn.Module) -> nn.Module:
        """DDP around `network`, whose buckets are those of every step.

        In its first backward pass DDP has one bucket, and rebuilds them in the order in which gradients arrived. The order in
        which three ranks or more are summed depends on a gradient's place in its bucket: without a pass before the first step,
        a training that is continued would round otherwise in one step than one that was never stopped.
        """
        self._wrapped = wrap(network, self._buckets, NoCompression(), self._world)
        if self._world.size > 2:
            with batch_statistics.kept(network):
                self._trial()(self._wrapped)
        self._compression.attach(self._wrapped)
        return self._wrapped

    def rehearsed(self, network: nn.Module) -> nn.Module:
        """DDP around `network`, with a compression of its own."""
        return wrap(network, self._buckets, self._build_compression(), self._world)

    def only_if(self, last: bool) -> AbstractContextManager[Any]:
        """All micro-batches but the last are DDP's `no_sync`."""
        return contextlib.nullcontext() if last else self._wrapped.no_sync()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """That of the compression."""
        return self._compression.state()

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """That of the compression."""
        self._compression.load_state(tensors, values)


def wrap(network: nn.Module, buckets: Buckets, compression: NoCompression, world: World) -> DistributedDataParallel:
    """DDP around `network`, with these gradient buckets, reduced by `compression`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers, 2.11 knows no other
        wrapped = DistributedDataParallel(
            network,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # batch statistics stay each rank's own; rank 0's are saved
            gradient_as_bucket_view=True,  # avoids a copy of every gradient
            **buckets.arguments(),
        )
    compression.attach(wrapped)
    return wrapped


def _compression(config: Config, parameters: dict[str, nn.Parameter], world: World) -> NoCompression:
    name = config.communication.compression
    if name == "none":
        return NoCompression()
    return PowerSgd(config, parameters, world) if name == "powersgd" else CastCompression(name)


def _buckets(
    wanted: float | str,
    network: nn.Module,
    build_compression: Callable[[], NoCompression],
    trial: Callable[[], Trial],
    world: World,
) -> tuple[Buckets, dict[str, Any]]:
    """The sizes that the configuration names, or the quickest for this network, link and batch, and what was measured."""
    if not isinstance(wanted, str):
        return DDP_DEFAULT if wanted == DDP_DEFAULT.size else Buckets(wanted, wanted), {}
    candidates = {buckets.name: buckets for buckets in CANDIDATES if buckets.possible}
    compression = build_compression()  # its state ends with the trials
    wrappers = {name: partial(wrap, network, buckets, compression, world) for name, buckets in candidates.items()}
    choice, seconds, _ = quickest(wrappers, trial(), network, world)
    chosen = candidates[choice]
    return chosen, {"bucket_mb": {"chosen": [chosen.size, chosen.first], "seconds": seconds}}
