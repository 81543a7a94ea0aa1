"""Optimizers that scale each layer's step by the layer's norm, for large batches: LARS and LAMB.

Only parameters of groups with `adapt` are scaled; the others (biases, norms) take the plain step, as both papers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    v = m v + lr * ratio * (g + decay * w); w = w - v, where ratio = trust * |w| / (|g| + decay * |w|), or 1 for a layer or a
    gradient of zeros and for groups without `adapt`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float, eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust_coefficient, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group)
            if not parameters:
                continue
            velocities = [_state(self, p, "momentum_buffer") for p in parameters]
            decay = group["weight_decay"]
            rates: list[Tensor] | float = group["lr"]
            if group["adapt"]:
                weight_norms = torch._foreach_norm(parameters)
                gradient_norms = torch._foreach_norm(gradients)
                ratios = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / (g + decay * w + group["eps"]), 1.0)
                    for w, g in zip(weight_norms, gradient_norms, strict=True)
                ]
                rates = [group["lr"] * ratio for ratio in ratios]
            changes = torch._foreach_add(gradients, parameters, alpha=decay)
            torch._foreach_mul_(changes, rates)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, changes)
            torch._foreach_sub_(parameters, velocities)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., ICLR 2020, arXiv 1904.00962, algorithm 2), with Adam's bias correction.

    u = m / (sqrt(v) + eps) + decay * w; w = w - lr * ratio * u, where ratio = |w| / |u|, or 1 for zeros and for groups
    without `adapt`. The state is named as apex's FusedLAMB names it, so that either goes on from the other.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group)
            if not parameters:
                continue
            group["step"] = step = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            means = [_state(self, p, "exp_avg") for p in parameters]
            squares = [_state(self, p, "exp_avg_sq") for p in parameters]
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
                weight_norms, update_norms = torch._foreach_norm(parameters), torch._foreach_norm(updates)
                norms = zip(weight_norms, update_norms, strict=True)
                ratios = [torch.where((w > 0) & (u > 0), w / u, 1.0) for w, u in norms]
                torch._foreach_mul_(updates, ratios)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    parameters = [p for p in group["params"] if p.grad is not None]
    return parameters, [p.grad for p in parameters]


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor, kind: str) -> Tensor:
    state = optimizer.state[parameter]
    if kind not in state:
        state[kind] = torch.zeros_like(parameter)
    return state[kind]
