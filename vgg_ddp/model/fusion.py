"""Where layers that follow one another are one kernel: on a GPU, in a network that no compiler sees."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from vgg_ddp.config import Config


def fuse(features: nn.Sequential, config: Config, device: torch.device) -> None:
    """Let one layer take the place of each batch norm, 2x2 max pool and ReLU in a row, in place, where `config` allows.

    Parameters, buffers and their names stay, and every other layer keeps its place.
    """
    plain = config.compile in (False, "graph") and config.recompute == "none" and not config.model.sync_batch_norm
    if not (device.type == "cuda" and config.model.fused and config.channels_last and plain):
        return
    if importlib.util.find_spec("triton") is None:  # which comes with torch on Linux
        return
    from vgg_ddp.model.norm_pool_relu import NormPoolRelu2d

    layers = list(features)
    for number, (norm, pool, relu) in enumerate(zip(layers, layers[1:], layers[2:])):
        if isinstance(norm, nn.BatchNorm2d) and isinstance(pool, nn.MaxPool2d) and isinstance(relu, nn.ReLU):
            fused = NormPoolRelu2d(norm.num_features, norm.eps, norm.momentum)
            fused._parameters, fused._buffers = norm._parameters, norm._buffers
            fused.train(norm.training)
            features[number], features[number + 1], features[number + 2] = fused, nn.Identity(), nn.Identity()
