"""Sharpness-aware minimisation (SAM): each step goes along the gradient of the highest loss nearby, towards flat minima.

Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021
(arXiv 2010.01412), algorithm 1 with p = 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vgg_ddp.engines import Engine
from vgg_ddp.model import batch_statistics

SMALLEST = 1e-12  # added to the gradient's norm, which may be zero


class SharpnessAwareEngine:
    """A second gradient for each step of an engine, at weights moved `radius` along the first. See `vgg_ddp.engines.Engine`.

    A step costs two forward and backward passes. Both gradients are the mean over the ranks where `inner` reduces them, so
    that every rank moves its weights alike. Batch statistics, logged losses and accuracies are those of the first pass;
    a logged gradient norm is that of the second pass, whose gradient the step uses.
    """

    def __init__(self, inner: Engine, network: nn.Module, radius: float) -> None:
        """`radius`: Euclidean distance that all trained weights together are moved by (rho in the paper)."""
        self._inner, self._network, self._radius = inner, network, radius
        self._micro_batches: list[tuple[Tensor, Tensor]] = []
        self.optimizer, self.measured, self.backward = inner.optimizer, inner.measured, inner.backward
        self.weights, self.load_weights, self.whole_network = inner.weights, inner.load_weights, inner.whole_network
        self.state, self.load_state = inner.state, inner.load_state
        self.figures, self.synchronise = inner.figures, inner.synchronise

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """As the engine's; what it is given is kept for the second pass."""
        self._micro_batches.append((images, labels))
        return self._inner.forward(images, labels, last)

    def step(self) -> None:
        """Compute the gradient again at the moved weights; move them back, and take the engine's step with it."""
        micro_batches, self._micro_batches = self._micro_batches, []
        with self._moved(), batch_statistics.kept(self._network):
            for number, (images, labels) in enumerate(micro_batches, start=1):
                loss, _ = self._inner.forward(images, labels, last=number == len(micro_batches))
                self._inner.backward(loss)
        self._inner.step()

    @contextlib.contextmanager
    def _moved(self) -> Iterator[None]:
        """Inside the context the weights are moved to a higher loss, without gradients; after it, bit for bit as before."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        before = [parameter.detach().clone() for parameter in trained]
        with torch.no_grad():
            gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
            # The scale that fp16 gives the loss cancels out; where a gradient is not finite, neither is the second.
            scale = self._radius / (nn.utils.get_total_norm(gradients) + SMALLEST)
            torch._foreach_add_(trained, torch._foreach_mul(gradients, scale))
        del gradients  # this frame would keep their memory through the second pass
        self.optimizer.zero_grad()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(trained, before)
