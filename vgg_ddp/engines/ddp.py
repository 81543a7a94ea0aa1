"""PyTorch's DistributedDataParallel (Li et al., VLDB 2020) with automatic mixed precision."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp import optimizers
from vgg_ddp.config import Config
from vgg_ddp.distributed import World
from vgg_ddp.precision import autocast


class DdpEngine:
    """See `vgg_ddp.engines.Engine`."""

    def __init__(self, config: Config, network: nn.Module, world: World) -> None:
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._parameters = list(network.parameters())
        self._clip_norm = config.optimizer.clip_norm
        self._accumulation = config.accumulation
        self._criterion = nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)
        self._autocast = autocast(config.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.optimizer = optimizers.build(network, config.optimizer)
        network = torch.compile(network) if config.compile else network  # type: ignore[assignment]
        self._network: nn.Module = network
        self._skip_reduction = contextlib.nullcontext
        if world.size > 1:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", FutureWarning
                )  # torch 2.14 renames broadcast_buffers, 2.11 knows no other
                self._network = DistributedDataParallel(
                    network,
                    device_ids=[world.device.index] if world.device.type == "cuda" else None,
                    broadcast_buffers=False,  # batch statistics stay each rank's own; rank 0's are saved
                    gradient_as_bucket_view=True,
                )
            self._skip_reduction = self._network.no_sync  # type: ignore[assignment]

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        with contextlib.nullcontext() if last else self._skip_reduction(), self._autocast:
            logits = self._network(images)
            return self._criterion(logits, labels), logits

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss / self._accumulation).backward()

    def step(self) -> None:
        if self._clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            f"{self._names[id(parameter)]}/{key}": value
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
            if isinstance(value, Tensor)
        }
        return tensors, {"scaler": self._scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        by_name = {self._names[id(parameter)]: parameter for parameter in self._parameters}
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            parameter = by_name[name]
            layout = (
                torch.channels_last if value.ndim == 4 and _is_channels_last(parameter) else torch.contiguous_format
            )
            self.optimizer.state[parameter][kind] = value.to(parameter.device, copy=True, memory_format=layout)
        self._scaler.load_state_dict(values["scaler"])


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
