"""Replaces layers that follow one another by one fused layer of kernels: on a GPU, in a network that is not compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from vgg_ddp.config import Config

OLDEST = (7, 0)  # compute capability that Triton knows


def fuse(features: nn.Sequential, config: Config, device: torch.device) -> None:
    """Let one layer take the place of each batch norm and ReLU, and of a 2x2 max pool between them, where `config` allows.

    Parameters, buffers and their names stay, and every other layer keeps its place.
    """
    plain = config.compile in (False, "graph") and config.recompute == "none" and not config.model.sync_batch_norm
    if not (device.type == "cuda" and config.model.fused and config.channels_last and plain):
        return
    if not _triton_runs(device):
        return
    from vgg_ddp.model.fused_norm import FusedNorm2d

    layers = [*features, nn.Identity(), nn.Identity()]
    for number, (norm, *after) in enumerate(zip(layers, layers[1:], layers[2:])):
        pools = isinstance(after[0], nn.MaxPool2d)
        if isinstance(norm, nn.BatchNorm2d) and isinstance(after[pools], nn.ReLU):
            fused = FusedNorm2d(norm.num_features, norm.eps, norm.momentum, pool=2 if pools else 1)
            fused._parameters, fused._buffers = norm._parameters, norm._buffers
            fused.train(norm.training)
            features[number] = fused
            for gone in range(number + 1, number + 2 + pools):
                features[gone] = nn.Identity()


def has_c_compiler() -> bool:
    """Whether there is one that Triton looks for."""
    return "CC" in os.environ or any(map(shutil.which, ("gcc", "clang")))


def _triton_runs(device: torch.device) -> bool:
    """Whether Triton (part of torch on Linux) supports this GPU and finds the C compiler that it needs for launches."""
    if importlib.util.find_spec("triton") is None or not has_c_compiler():
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= OLDEST
