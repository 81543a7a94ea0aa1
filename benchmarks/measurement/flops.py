"""The arithmetic of a network, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One layer's work on one image.

    Attributes:
        forward_flops: a multiplication and an addition count as two; products with padding are counted too.
        backward_flops: those for the gradients of the weights and, except in the first layer, of the input.
        values: numbers read and written by the forward pass, weights apart: its input and its output.
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
    def training_flops(self) -> float:
        """Of the forward and the backward pass."""
        return self.forward_flops + self.backward_flops

    @property
    def training_values(self) -> int:
        """Numbers read and written forward and backward: the backward pass takes its inputs and both gradients."""
        return 3 * self.values

    @property
    def weights(self) -> int:
        """The number of the parameters' elements."""
        return sum(math.prod(shape) for shape in self.parameters)

    @property
    def in_classifier(self) -> bool:
        """Whether the layer comes after the convolutions."""
        return self.name.startswith("classifier")


def layers(network: nn.Module, image_size: int) -> list[Layer]:
    """The layers of `network` in the order of the forward pass, counted in a forward pass of one image."""
    counted: list[Layer] = []

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flops = _forward_flops(module, output)
        is_first = bool(flops) and not any(layer.forward_flops for layer in counted)
        backward = flops if is_first else 2 * flops  # the gradient of the pixels is not computed
        shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
        counted.append(Layer(name, flops, backward, inputs[0].numel() + output.numel(), shapes, output.numel()))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: count(name, module, inputs, output))
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return counted


def _forward_flops(module: nn.Module, output: Tensor) -> float:
    """FLOP of convolutions and linear layers; the others are bound by memory traffic, which `values` counts."""
    if isinstance(module, nn.Conv2d):
        return 2.0 * math.prod(module.kernel_size) * module.in_channels * output.numel()
    if isinstance(module, nn.Linear):
        return 2.0 * module.in_features * output.numel()
    return 0.0


def flop_per_image(network: nn.Module, image_size: int) -> float:
    """Of a training step: the convolutions and linear layers."""
    return sum(layer.training_flops for layer in layers(network, image_size))
