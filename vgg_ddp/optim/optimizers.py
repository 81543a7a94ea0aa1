"""Optimizers: the update rule, and the names of its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.optim import nvidia_apex
from vgg_ddp.optim.lars_lamb import Lamb, Lars
from vgg_ddp.optim.muon import Muon
from vgg_ddp.optim.parameter_groups import parameter_groups

# The tensors that each optimizer keeps for a parameter, by torch's names.
STATE = {
    "sgd": ("momentum_buffer",),
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "lars": ("momentum_buffer",),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "muon": ("momentum_buffer",),
}


def build(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, by name; torch's fused kernels do the update in one pass over memory.

    Raises:
        UserError: apex is asked for and cannot be had.
    """
    groups = parameter_groups(parameters, config)
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    device = groups[0]["params"][0].device
    if nvidia_apex.has_the_steps(groups, config) and nvidia_apex.chosen(
        config.implementation, "optimizer.implementation", device
    ):
        return nvidia_apex.optimizer(groups, config)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        return _with_momenta(sgd) if config.momentum else sgd
    if config.name == "lars":
        return Lars(groups, rate, config.momentum, config.trust_coefficient, config.epsilon)
    if config.name == "lamb":
        return Lamb(groups, rate, betas, config.epsilon)
    if config.name == "muon":
        return Muon(groups, rate, config.momentum, config.nesterov, config.muon_fixed_norm)
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return rule(groups, lr=rate, betas=betas, eps=config.epsilon, fused=True)


def _with_momenta(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """Make its momentum buffers at once, of zeros, which gives the same steps.

    Otherwise the fused kernel allocates them uninitialised in its first step; if fp16 overflows in that step, it writes
    nothing there, and the next step uses what the memory held before.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return sgd


def prepare_for_recording(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rate in memory of the device, where a recorded step reads it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        if "capturable" in group:  # without it torch's Adam and AdamW refuse to be recorded
            group["capturable"] = True
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not recorded


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group, multiplied by the group's `rate`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # which a recorded step reads
            group["lr"].fill_(learning_rate * group["rate"])
        else:
            group["lr"] = learning_rate * group["rate"]


def group_values(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state that an optimizer keeps for all parameters together, for a checkpoint: LAMB's step count."""
    group = optimizer.param_groups[0]
    return {"optimizer_step": group["step"]} if "step" in group else {}


def load_group_values(optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> None:
    """Set what `group_values` gave."""
    for group in optimizer.param_groups:
        if "optimizer_step" in values:
            group["step"] = values["optimizer_step"]
