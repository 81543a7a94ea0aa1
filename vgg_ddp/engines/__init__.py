"""Engines: what runs the distributed step. The training loop knows only this interface.

To add one: a module with a class of this interface, and its line in `build`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed import World


class Engine(Protocol):
    """Runs forward, backward and update; holds the optimizer and the gradient scaler."""

    optimizer: torch.optim.Optimizer

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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's tensors by parameter name, and everything else as plain values."""
        ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...


def build(config: Config, network: nn.Module, world: World) -> Engine:
    """The engine that `config.engine` names, around a network that is on its device already."""
    from vgg_ddp.engines.ddp import DdpEngine

    return DdpEngine(config, network, world)
