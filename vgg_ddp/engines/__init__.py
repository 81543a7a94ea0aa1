"""Engines: what runs the distributed step. The training loop knows only the interface `Engine`.

To add one: a module with a class of this interface, and its line in `build`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.model import batch_norm


class Engine(Protocol):
    """Runs forward, backward and update; holds the optimizer and the gradient scaler.

    All ranks call each method together.
    """

    optimizer: torch.optim.Optimizer
    measured: dict[str, Any]  # what was chosen by measuring, by config key: for the record

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Loss (a scalar: the mean over the images) and logits [n, classes] of one micro-batch.

        Args:
            last: whether it is the last micro-batch of the step: gradients are reduced over the ranks then only.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients."""
        ...

    def step(self) -> None:
        """Update the parameters with the mean gradient of the global batch, and clear the gradients."""
        ...

    def figures(self) -> dict[str, float]:
        """More figures for the row of the log that ends with the last step, by name; the host may wait for the device."""
        ...

    def synchronise(self) -> None:
        """Make the parameters of all ranks the same, where they are not after every step."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict, every tensor whole."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load what `weights` gave, at any world size, in any engine."""
        ...

    def whole_network(self) -> nn.Module:
        """The network with every parameter whole on this rank, to be evaluated."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """On rank 0 the optimizer's tensors as `parameter/kind` (`rank_state` where ranks differ), and other values."""
        ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Load what `state` gave, at any world size, in any engine."""
        ...


def build(config: Config, network: nn.Module, world: World) -> Engine:
    """The engine that `config.engine` names, around a network that is on its device already.

    Raises:
        UserError: the batch does not divide, or what the configuration asks for cannot be had here.
    """
    if config.model.sync_batch_norm and world.size > 1:
        batch_norm.convert(network)
    if config.engine == "deepspeed":
        from vgg_ddp.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config, network, world)
    from vgg_ddp.engines.ddp import DdpEngine
    from vgg_ddp.engines.local_sgd import LocalSgdEngine
    from vgg_ddp.engines.sharpness import SharpnessAwareEngine

    micro_batch = config.loss.trained_on(config.local_batch(world.size) // config.accumulation)
    local_sgd = config.communication.synchronise_every > 1 and world.size > 1
    reduce_gradients = world.size > 1 and not local_sgd
    engine: Engine = DdpEngine(config, network, world, reduce_gradients=reduce_gradients, micro_batch=micro_batch)
    if config.optimizer.sharpness_radius:
        engine = SharpnessAwareEngine(engine, network, config.optimizer.sharpness_radius)
    return LocalSgdEngine(engine, network, config.communication, world) if local_sgd else engine
