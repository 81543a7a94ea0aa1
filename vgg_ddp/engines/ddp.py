"""PyTorch's DistributedDataParallel (Li et al., VLDB 2020) with automatic mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import head, rank_state, reduction
from vgg_ddp.engines.compilation import compiled
from vgg_ddp.engines.powersgd import PowerSgd
from vgg_ddp.engines.reduction import Buckets, Hook
from vgg_ddp.engines.trials import Trial, of_noise, quickest
from vgg_ddp.model import batch_norm
from vgg_ddp.optim import losses, optimizers
from vgg_ddp.optim.precision import autocast


class DdpEngine:
    """See `vgg_ddp.engines.Engine`."""

    def __init__(self, config: Config, network: nn.Module, world: World) -> None:
        self._config, self._world = config, world
        self._clip_norm = config.optimizer.clip_norm
        self._accumulation = config.accumulation
        self._criterion = losses.build(config.loss, world.device)
        self._autocast = autocast(config.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.measured: dict[str, Any] = {}
        if config.model.sync_batch_norm and world.size > 1:
            batch_norm.synchronise(network)
        self._head = head.build(network, config.communication, world)
        self._parameters = {**dict(network.named_parameters()), **self._head.parts}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self.optimizer = optimizers.build(list(self._parameters.values()), config.optimizer)
        self._plain = network
        self._network, found = compiled(network, config.compile, self._trial, world)
        if found:
            self.measured["compile"] = found
        self._skip_reduction: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._powersgd: PowerSgd | None = None
        if world.size > 1:
            self._distribute(config)

    def _distribute(self, config: Config) -> None:
        communication = config.communication
        buckets = self._buckets()
        if communication.compression == "powersgd":
            self._powersgd = self._new_powersgd()
        wrapped = reduction.wrap(self._network, communication, buckets, self._hook(self._powersgd), self._world)
        self._network, self._skip_reduction = wrapped, wrapped.no_sync

    def _buckets(self) -> Buckets:
        """The sizes that the configuration names, or the quickest for this network, link and batch."""
        communication = self._config.communication
        if communication.bucket_mb != "auto":
            return Buckets(communication.bucket_mb, communication.first_bucket_mb or communication.bucket_mb)
        hook = None if communication.compression != "powersgd" else self._new_powersgd()
        build = partial(reduction.wrap, self._network, communication)
        candidates = {sizes.name: sizes for sizes in reduction.CANDIDATES}
        builders = {name: partial(build, sizes, self._hook(hook), self._world) for name, sizes in candidates.items()}
        choice, seconds, _ = quickest(builders, self._trial(), self._plain, self._world)
        chosen = candidates[choice]
        self.measured["bucket_mb"] = {"chosen": [chosen.size, chosen.first], "seconds": seconds}
        return chosen

    def _trial(self) -> Trial:
        """Of a rank's micro-batch."""
        config = self._config
        count = config.local_batch(self._world.size) // config.accumulation
        return of_noise(config, count, self._criterion, self._autocast, self._world.device)

    def _new_powersgd(self) -> PowerSgd:
        return PowerSgd(self._config.communication, self._names, self._world, self._config.seed)

    def _hook(self, powersgd: PowerSgd | None) -> Hook | None:
        if powersgd is not None:
            return lambda state, bucket: powersgd.reduce(bucket)
        return reduction.CAST_HOOKS.get(self._config.communication.compression)

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        with contextlib.nullcontext() if last else self._skip_reduction(), self._autocast:
            logits = self._network(images)
            return self._criterion(logits, labels), logits

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss / self._accumulation).backward()

    def step(self) -> None:
        self._head.collect_gradients()
        if self._clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()

    def synchronise(self) -> None:
        """Nothing to do: every rank takes the same steps."""

    def weights(self) -> dict[str, Tensor]:
        return self._head.weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self._head.load_weights(weights)

    def whole_network(self) -> nn.Module:
        return self._head.whole_network()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for parameter, values in self.optimizer.state.items():
            name = self._names[id(parameter)]
            tensors |= {
                f"{name}/{key}": self._head.whole(name, v) for key, v in values.items() if isinstance(v, Tensor)
            }
        values = {"scaler": self._scaler.state_dict(), **optimizers.group_values(self.optimizer)}
        if self._powersgd is not None:
            compressed, values["powersgd"] = self._powersgd.state()
            tensors |= compressed
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        tensors = rank_state.take(tensors, self._world)
        if self._powersgd is not None:
            self._powersgd.load_state(tensors, values.get("powersgd", {}), self._parameters)
        known = optimizers.STATE[self._config.optimizer.name]
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            if kind in known:
                parameter = self._parameters[name]
                own = self._head.part(name, value)
                channels_last = own.ndim == 4 and _is_channels_last(parameter)
                layout = torch.channels_last if channels_last else torch.contiguous_format
                self.optimizer.state[parameter][kind] = own.to(parameter.device, copy=True, memory_format=layout)
        optimizers.load_group_values(self.optimizer, values)
        self._scaler.load_state_dict(values["scaler"])


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
