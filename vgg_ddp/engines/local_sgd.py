"""Local SGD: each rank steps on its own, and the ranks' parameters are averaged now and then. For slow links.

After every `communication.synchronise_every` steps (inner steps) the ranks exchange how far each went from the last common
parameters, and take one step (the outer step) along the mean. With a rate of 1 and no momentum that is the mean of the
parameters: local SGD (Stich, ICLR 2019). With Nesterov momentum it is DiLoCo (Douillard et al. 2023, arXiv 2311.08105,
algorithm 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import Engine, rank_state
from vgg_ddp.model import batch_statistics

MOMENTUM = "outer_momentum"
DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LocalSgdEngine:
    """Outer steps around an engine that does not reduce gradients. See `vgg_ddp.engines.Engine`.

    Between two outer steps the ranks' parameters and batch statistics differ; after one, statistics are rank 0's, as saved.
    Optimizer state is each rank's own throughout.
    """

    def __init__(self, inner: Engine, network: nn.Module, config: CommunicationConfig, world: World) -> None:
        self._inner, self._network, self._world, self._config = inner, network, world, config
        self._sent_as = DTYPES[config.compression]
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._common = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._momenta: dict[str, Tensor] = {}
        self._steps, self._synchronised_at = 0, 0
        self.optimizer, self.measured = inner.optimizer, inner.measured
        self.forward, self.backward = inner.forward, inner.backward
        self.weights, self.whole_network = inner.weights, inner.whole_network

    def step(self) -> None:
        """Take a step of this rank alone and, every `synchronise_every` steps, the outer step after it."""
        self._inner.step()
        self._steps += 1
        if self._steps % self._config.synchronise_every == 0:
            self.synchronise()

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    @torch.no_grad()
    def synchronise(self) -> None:
        """Take the outer step, unless there was no inner step since the last."""
        if self._synchronised_at == self._steps:
            return
        self._synchronised_at = self._steps
        changes = {name: (self._common[name] - p).to(self._sent_as) for name, p in self._parameters.items()}
        works = [dist.all_reduce(change.div_(self._world.size), async_op=True) for change in changes.values()]
        for work, (name, change) in zip(works, changes.items(), strict=True):
            work.wait()
            common = self._common[name]
            common.sub_(self._direction(name, change.to(common.dtype)), alpha=self._config.outer_learning_rate)
            self._parameters[name].copy_(common)
        batch_statistics.take_rank_zero(self._network)

    def _direction(self, name: str, change: Tensor) -> Tensor:
        """The mean change with Nesterov momentum, as in torch's SGD."""
        momentum = self._config.outer_momentum
        if momentum == 0:
            return change
        buffer = self._momenta.get(name)
        buffer = self._momenta[name] = change.clone() if buffer is None else buffer.mul_(momentum).add_(change)
        return change.add_(buffer, alpha=momentum)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every rank's optimizer state and the common momentum. Call `synchronise` first: parameters must agree."""
        assert self._synchronised_at == self._steps, "saved between two outer steps"
        own, values = self._inner.state()
        tensors = rank_state.gather(own, self._world)
        tensors |= {f"{name}/{MOMENTUM}": buffer for name, buffer in self._momenta.items()}
        return tensors, {**values, "outer_steps": self._steps}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load the common parameters of all ranks."""
        self._inner.load_weights(weights)
        for name, parameter in self._parameters.items():
            self._common[name].copy_(parameter.detach())

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Load this rank's optimizer and the common momentum, right after an outer step."""
        self._inner.load_state(tensors, values)
        self._steps = self._synchronised_at = values.get("outer_steps", 0)
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition("/")
            if kind == MOMENTUM and self._config.outer_momentum:
                self._momenta[name] = torch.empty_like(self._common[name]).copy_(tensor)
