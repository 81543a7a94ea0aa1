"""Which parts of a network are trained, and the momentum of its batch norms' running statistics."""

from __future__ import annotations

from torch import nn

from vgg_ddp.config import Config
from vgg_ddp.model.network import VGG


def settle(network: VGG, config: Config) -> None:
    """Freeze what `config` says is not trained, and set the momentum of batch norms, in place.

    Frozen are all convolutions (`optimizer.features_rate`), the first (`model.whiten`), the scales of batch norms
    (`model.norm_scale`; airbench94, Jordan 2024, arXiv 2404.00498, section 3.1).
    """
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = config.model.norm_momentum
            norm.weight.requires_grad_(config.model.norm_scale)
    if config.model.whiten:
        network.get_parameter("features.0.weight").requires_grad_(False)
    if config.optimizer.features_rate == 0:
        network.freeze_features()
