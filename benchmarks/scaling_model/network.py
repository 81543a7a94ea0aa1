"""The layers of a VGG by its name, without its weights."""

from __future__ import annotations

from typing import Any, Literal

import torch

from benchmarks.measurement import flops
from benchmarks.measurement.flops import Layer
from vgg_ddp.model.network import vgg


def layers(
    configuration: str = "D",
    batch_norm: bool = False,
    head: Literal["paper", "compact"] = "paper",
    num_classes: int = 1000,
    image_size: int = 224,
) -> list[Layer]:
    """The layers of `vgg_ddp.model.network.vgg` in the order of the forward pass, counted on the network itself."""
    with torch.device("meta"):
        return flops.layers(vgg(configuration, batch_norm, head, num_classes, image_size), image_size)


def training_flops(network: list[Layer]) -> float:
    """The FLOP of one image, forward and backward."""
    return sum(layer.training_flops for layer in network)


def describe(network: list[Layer]) -> dict[str, Any]:
    """The size of a network, for the file of results."""
    return {
        "parameters": sum(layer.weights for layer in network),
        "classifier_parameters": sum(layer.weights for layer in network if layer.in_classifier),
        "training_gflop_per_image": training_flops(network) / 1e9,
    }
