"""PyTorch's DistributedDataParallel (Li et al., VLDB 2020) with automatic mixed precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import rank_state
from vgg_ddp.engines.compilation import GRAPH, compiled, stream_for
from vgg_ddp.engines.gradients import Gradients
from vgg_ddp.engines.head import WholeHead
from vgg_ddp.engines.reduction import DdpReduction, NoReduction
from vgg_ddp.engines.trials import of_noise
from vgg_ddp.optim import losses, optimizers
from vgg_ddp.optim.precision import autocast


class DdpEngine:
    """Forward, backward, step. See `vgg_ddp.engines.Engine`.

    Each optional feature is an object of its own that does nothing when it is off: a head that is split over the ranks,
    a compiled network, the reduction of gradients (in buckets of a measured size, compressed), their clipping.
    """

    def __init__(
        self, config: Config, network: nn.Module, world: World, *, reduce_gradients: bool, micro_batch: int
    ) -> None:
        """Build the optimizer and everything around `network`, which is on its device already.

        Args:
            reduce_gradients: average gradients over the ranks. If not, no step exchanges anything with another rank.
            micro_batch: images in one forward pass of this rank, for what is chosen by measuring.
        """
        self._world, self._accumulation = world, config.accumulation
        self._criterion = losses.build(config.loss, world.device)
        self._autocast = autocast(config.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self._head = _head(config, network, world) if reduce_gradients else WholeHead(network)
        self.weights, self.load_weights = self._head.weights, self._head.load_weights
        self.whole_network = self._head.whole_network
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._parameters = {**trained, **self._head.shards}
        self._kinds = optimizers.STATE[config.optimizer.name]
        self._common_kinds = self._kinds if reduce_gradients else ()
        self.optimizer = optimizers.build(self._parameters, config.optimizer)
        self._gradients = Gradients(config, network, self._parameters.values(), self.optimizer, self._scaler)
        trial = partial(of_noise, config, micro_batch, self._criterion, self._autocast, world.device)
        self._reduction = NoReduction()
        if reduce_gradients:
            self._reduction = DdpReduction(network, self._parameters, config, trial, world)
        network, form, measured = compiled(config, network, self._reduction.rehearsed, trial, world)
        if form == GRAPH:
            optimizers.prepare_for_recording(self.optimizer, world.device)
        with stream_for(form, world.device):
            self._network = self._reduction.around(network)
        self.measured: dict[str, Any] = {**measured, **self._reduction.measured}

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """The backward pass of the last micro-batch reduces the gradients accumulated over all of them."""
        self._gradients.begin()
        with self._reduction.only_if(last), self._autocast:
            logits = self._network(images)
            return self._criterion(logits, labels), logits

    def backward(self, loss: Tensor) -> None:
        """Accumulate this micro-batch's share of the gradient."""
        self._scaler.scale(loss / self._accumulation).backward()

    def step(self) -> None:
        """Update, unless a gradient overflowed float16: then the step is skipped and the loss scale halved."""
        self._head.collect_gradients()
        if self._gradients.may_be_taken():
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad()

    def figures(self) -> dict[str, float]:
        """The figures of the gradients that the configuration asks for."""
        return self._gradients.figures()

    def synchronise(self) -> None:
        """Nothing to do: every rank takes the same steps."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's tensors as `parameter/kind`, whole; loss scale; what the compression remembers."""
        tensors, values = self._reduction.state()
        for name, parameter in self._parameters.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{kind}"] = self._head.whole(name, value)
        values |= self._gradients.state() | optimizers.group_values(self.optimizer)
        return tensors, {"scaler": self._scaler.state_dict(), **values}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take what this optimizer and this compression know, saved at any world size by any engine."""
        tensors = rank_state.take(tensors, self._world, self._common_kinds)
        self._reduction.load_state(tensors, values)
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            if kind in self._kinds and name in self._parameters:
                parameter = self._parameters[name]
                self.optimizer.state[parameter][kind] = _placed(self._head.shard(name, value), parameter)
        optimizers.load_group_values(self.optimizer, values)
        self._gradients.load_state(values)
        if values.get("scaler"):  # empty where the checkpoint was saved in another precision
            self._scaler.load_state_dict(values["scaler"])


def _head(config: Config, network: nn.Module, world: World) -> WholeHead:
    """The head of `network`, split over ranks, in place, where `communication.split_head` says so."""
    if config.communication.split_head == "none":
        return WholeHead(network)
    from vgg_ddp.engines.split_head import SplitHead  # slow to import

    return SplitHead(network, config.communication, world)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of optimizer state, on the parameter's device and in its memory layout."""
    channels_last = value.ndim == parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return value.to(parameter.device, copy=True, memory_format=layout)
