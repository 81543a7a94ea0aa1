"""How much arithmetic a network is, layer by layer, and how much the device can do: measured, in the same run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Layer:
    """One layer's work on one image.

    Attributes:
        forward_flops: a multiplication and an addition count as two; convolutions as if every tap met a pixel.
        backward_flops: those for the weights' gradients and, but for the first layer, for the input's.
        values: numbers read and written by the forward pass: its input and its output (weights apart).
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
        return self.forward_flops + self.backward_flops

    @property
    def training_values(self) -> int:
        """Numbers read and written forward and backward: the backward pass takes its inputs and both gradients."""
        return 3 * self.values

    @property
    def weights(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters)

    @property
    def in_classifier(self) -> bool:
        return self.name.startswith("classifier")


def layers(network: nn.Module, image_size: int) -> list[Layer]:
    """The layers of `network` in the order in which an image passes them, counted as one does."""
    found: list[Layer] = []

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flops = _forward_flops(module, output)
        both = (
            1 if flops and not any(layer.forward_flops for layer in found) else 2
        )  # nobody asks for the pixels' gradient
        shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
        found.append(Layer(name, flops, both * flops, inputs[0].numel() + output.numel(), shapes, output.numel()))

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
    return found


def _forward_flops(module: nn.Module, output: Tensor) -> float:
    """Of the layers that multiply; the others are bound by memory and counted in `values`."""
    if isinstance(module, nn.Conv2d):
        return 2.0 * math.prod(module.kernel_size) * module.in_channels * output.numel()
    if isinstance(module, nn.Linear):
        return 2.0 * module.in_features * output.numel()
    return 0.0


def flop_per_image(network: nn.Module, image_size: int) -> float:
    """Of a training step: the convolutions and linear layers."""
    return sum(layer.training_flops for layer in layers(network, image_size))


class Peak:
    """The rates that the device reaches on a large matrix product and on a large copy."""

    def __init__(self, precision: str, device: torch.device) -> None:
        side = 8192 if device.type == "cuda" else 2048
        dtype = DTYPES[precision]
        self._left, self._right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self._source = torch.zeros(64 * 2**20 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self._device = device

    def product(self) -> float:
        """FLOP/s of a matrix product."""
        seconds = self._seconds(lambda: self._left @ self._right)
        return 2.0 * len(self._left) ** 3 / seconds

    def copy(self) -> float:
        """Bytes/s of a copy, reading and writing."""
        return 2.0 * self._source.numel() / self._seconds(lambda: self._target.copy_(self._source))

    def _seconds(self, work) -> float:  # type: ignore[no-untyped-def]
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            work()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            best = min(best, time.perf_counter() - start)
        return best
