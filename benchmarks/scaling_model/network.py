"""What the layers of a VGG compute, read, write and hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vgg_ddp.model import vgg


@dataclass(frozen=True)
class Layer:
    """One layer, per image.

    Attributes:
        forward_flops: a multiplication and an addition count as two; convolutions as if every tap met a pixel.
        backward_flops: those for the weights' gradients and, but for the first layer, for the input's.
        values: numbers read and written by the forward pass: its input and its output.
        parameters: shape of each parameter, in the order in which the module holds them.
        outputs: numbers that leave the layer.
    """

    name: str
    forward_flops: float
    backward_flops: float
    values: int
    parameters: tuple[tuple[int, ...], ...]
    outputs: int

    @property
    def weights(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters)

    @property
    def in_classifier(self) -> bool:
        return self.name.startswith("classifier")


def layers(
    configuration: str = "D",
    batch_norm: bool = False,
    head: Literal["paper", "compact"] = "paper",
    num_classes: int = 1000,
    image_size: int = 224,
) -> list[Layer]:
    """The layers of `vgg_ddp.model.vgg` in the order of the forward pass, counted on the network itself."""
    with torch.device("meta"):
        network = vgg(configuration, batch_norm, head, num_classes, image_size).eval()
        image = torch.empty(1, 3, image_size, image_size)
    found: list[Layer] = []

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flops = _forward_flops(module, output)
        both = 1 if not found and flops else 2  # nothing asks for the gradient of the pixels
        shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
        found.append(Layer(name, flops, both * flops, inputs[0].numel() + output.numel(), shapes, output.numel()))

    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output, name=name: count(name, module, inputs, output))
    with torch.no_grad():
        network(image)
    return found


def _forward_flops(module: nn.Module, output: Tensor) -> float:
    """Of the layers that multiply; the others are bound by memory and counted in `values`."""
    if isinstance(module, nn.Conv2d):
        return 2.0 * math.prod(module.kernel_size) * module.in_channels * output.numel()
    if isinstance(module, nn.Linear):
        return 2.0 * module.in_features * output.numel()
    return 0.0


def training_flops(network: list[Layer]) -> float:
    """Of one image through forward and backward."""
    return sum(layer.forward_flops + layer.backward_flops for layer in network)


def describe(network: list[Layer]) -> dict[str, Any]:
    return {
        "parameters": sum(layer.weights for layer in network),
        "classifier_parameters": sum(layer.weights for layer in network if layer.in_classifier),
        "training_gflop_per_image": training_flops(network) / 1e9,
    }
