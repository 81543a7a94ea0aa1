"""Which parameters are updated alike: decayed or not, at which share of the learning rate, by which part of the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vgg_ddp.config.optimizer import OptimizerConfig

Groups = list[dict[str, Any]]


def parameter_groups(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> Groups:
    """Weights (two or more dimensions) with weight decay; biases and norms without, unless the config decays them too.

    `adapt`: whether LARS and LAMB scale the group's steps, as they do for weights; `orthogonal`: whether Muon updates
    it, as it does convolution weights. `rate` is the group's factor of the learning rate; that of norms' biases may be
    large (airbench94, Jordan 2024, arXiv 2404.00498, section 3.4). Frozen parameters are in no group.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        convolutional, adapt = name.startswith("features."), parameter.ndim > 1
        orthogonal = config.name == "muon" and convolutional and adapt
        rate = config.features_rate if convolutional else 1.0
        if orthogonal:
            rate *= config.muon_rate / config.learning_rate
        elif convolutional and not adapt and name.endswith(".bias"):
            rate *= config.bias_rate
        decay = config.weight_decay if adapt or config.decay_biases_and_norms else 0.0
        group = {"params": [], "weight_decay": decay, "adapt": adapt, "orthogonal": orthogonal, "rate": rate}
        if orthogonal:
            group["momentum"] = config.muon_momentum
        groups.setdefault((rate, not adapt, orthogonal), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
