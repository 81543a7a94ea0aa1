"""The initial weights of a VGG."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from vgg_ddp.model.network import VGG


@torch.no_grad()
def initialize(model: VGG, method: Literal["kaiming", "glorot", "paper", "dirac"], seed: int) -> None:
    """Set the initial weights from `seed`, the same on every rank; biases are zero, norms the identity.

    "paper": normal, zero mean, variance 0.01 (section 3.1); "glorot": uniform (Glorot & Bengio 2010, eq. 16);
    "kaiming": normal, for ReLU, by the fan out of convolutions (He et al. 2015, eq. 14), with 0.01 for linear layers; "dirac":
    the same, but the first outputs of each convolution are its inputs (Zagoruyko & Komodakis 2017, arXiv 1706.00388; for the
    first outputs alone: airbench94, Jordan 2024, arXiv 2404.00498, section 3.3).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if method == "paper":
                nn.init.normal_(module.weight, 0.0, math.sqrt(0.01), generator=generator)
            elif method == "glorot":
                nn.init.xavier_uniform_(module.weight, generator=generator)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if method == "dirac":
                    nn.init.dirac_(module.weight[: module.in_channels])
            else:
                nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
