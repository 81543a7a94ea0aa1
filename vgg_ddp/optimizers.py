"""Optimizers: which parameters are decayed, and the update rule."""

from __future__ import annotations

import torch
from torch import nn

from vgg_ddp.config.schema import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Weights (two or more dimensions) with weight decay; biases and norms without, unless the config decays them too."""
    weights = [p for p in model.parameters() if p.ndim > 1 or config.decay_biases_and_norms]
    others = [p for p in model.parameters() if p.ndim <= 1 and not config.decay_biases_and_norms]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters; torch's fused kernel does the update in one pass over memory."""
    return torch.optim.SGD(
        parameter_groups(model, config),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
