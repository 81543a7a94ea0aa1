"""Optimizers that scale each layer's step by the layer's norm, for large batches: LARS and LAMB.

Only parameters of groups with `adapt` are scaled; the others (biases, norms) take the plain step, as both papers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OfGroups(torch.optim.Optimizer):
    """Updates one group of parameters after another; the rule is `_update`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters, [p.grad for p in parameters])

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _state(self, parameters: list[Tensor], kind: str) -> list[Tensor]:
        """The state of each parameter, zeros at first."""
        for new in (p for p in parameters if kind not in self.state[p]):
            self.state[new][kind] = torch.zeros_like(new)
        return [self.state[p][kind] for p in parameters]


class Lars(OfGroups):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    v = m v + lr * ratio * (g + decay * w); w = w - v, where ratio = trust * |w| / (|g| + decay * |w|), or 1 for a layer or a
    gradient of zeros and for groups without `adapt`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float, eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust_coefficient, "eps": eps})

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        velocities = self._state(parameters, "momentum_buffer")
        decay = group["weight_decay"]
        rates: list[Tensor] | float = group["lr"]
        if group["adapt"]:
            weight_norms = torch._foreach_norm(parameters)
            gradient_norms = torch._foreach_norm(gradients)
            w, g = torch.stack(weight_norms), torch.stack(gradient_norms)
            ratios = torch.where((w > 0) & (g > 0), group["trust"] * w / (g + decay * w + group["eps"]), 1.0)
            rates = list((group["lr"] * ratios).unbind())
        changes = torch._foreach_add(gradients, parameters, alpha=decay)
        torch._foreach_mul_(changes, rates)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, changes)
        torch._foreach_sub_(parameters, velocities)


class Lamb(OfGroups):
    """LAMB (You et al., ICLR 2020, arXiv 1904.00962, algorithm 2), with Adam's bias correction.

    u = m / (sqrt(v) + eps) + decay * w; w = w - lr * ratio * u, where ratio = |w| / |u|, or 1 for zeros and for groups
    without `adapt`. The state is named as apex's FusedLAMB names it, so that either goes on from the other.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        group["step"] = step = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        means = self._state(parameters, "exp_avg")
        squares = self._state(parameters, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_div(squares, 1 - beta2**step)
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, group["eps"])
        updates = torch._foreach_div(means, 1 - beta1**step)
        torch._foreach_div_(updates, divisors)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            w, u = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
            torch._foreach_mul_(updates, list(torch.where((w > 0) & (u > 0), w / u, 1.0).unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
