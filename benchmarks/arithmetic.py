"""How much arithmetic a network is, layer by layer, and how much the device can do: measured, in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Layer:
    """One layer's work on one image in a training step.

    Attributes:
        name: its name in the network.
        kind: its class.
        flop: multiplications and additions, forward and backward; backward is twice forward, and the first layer's half
            of that, since nothing asks for the gradient of the images.
        values: numbers read and written, forward and backward: inputs, outputs and their gradients (weights apart).
    """

    name: str
    kind: str
    flop: float
    values: float


def layers(network: nn.Module, image_size: int) -> list[Layer]:
    """The layers of `network` in the order in which an image passes them."""
    found: list[Layer] = []
    hooks = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moved = 3.0 * (inputs[0].numel() + output.numel())
        forward = 0.0
        if isinstance(module, nn.Conv2d):
            forward = 2.0 * output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            forward = 2.0 * output.numel() * module.in_features
        first = isinstance(module, nn.Conv2d) and not any(layer.flop for layer in found)
        found.append(Layer(name, type(module).__name__, forward * (2 if first else 3), moved))

    for name, module in network.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(lambda m, i, o, name=name: note(name, m, i, o)))
    device = next(network.parameters()).device
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def flop_per_image(network: nn.Module, image_size: int) -> float:
    """Of a training step: the convolutions and linear layers, as they are defined (padding counts, as is the custom)."""
    return sum(layer.flop for layer in layers(network, image_size))


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
