"""Muon: momentum whose singular values are all made about 1, for convolutions; SGD for everything else.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); with weights of a fixed norm as in
airbench94_muon (github.com/KellerJordan/cifar10-airbench: 94 % on CIFAR-10 in 2.6 s on an A100).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from vgg_ddp.optim.lars_lamb import OfGroups

ITERATIONS = 5
# Coefficients of the polynomial a x + b x^3 + c x^5, five iterations of which map singular values of 0.003 to 1 to
# about 0.7 to 1.2 (Jordan et al. 2024, who chose the steepest at zero).
A, B, C = 3.4445, -4.7750, 2.0315
SMALLEST = 1e-7  # norm of a matrix that is not all zeros


class Muon(OfGroups):
    """Muon in groups with `orthogonal`, SGD with momentum in the others.

    v = m v + g; u = g + m v with Nesterov momentum, else v. In groups with `orthogonal`, w = s w - lr * O(u), where O
    makes the filters of u (flattened to outputs x all else) orthonormal, and s is what gives w the norm sqrt(outputs), or
    1 - lr * decay without `fixed_norm`. In the others, decay * w is added to g, and w = w - lr * u.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool, fixed_norm: bool
    ) -> None:
        """`groups` may have a `momentum` of their own."""
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "fixed_norm": fixed_norm}
        super().__init__(groups, defaults)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        velocities = self._state(parameters, "momentum_buffer")
        orthogonal, decay = group["orthogonal"], group["weight_decay"]
        if not orthogonal:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        changes = velocities
        if group["nesterov"]:
            changes = list(torch._foreach_add(gradients, velocities, alpha=group["momentum"]))
        if orthogonal:
            changes = orthogonalised(changes)
            if group["fixed_norm"]:
                norms = torch._foreach_div(torch._foreach_norm(parameters), [math.sqrt(len(p)) for p in parameters])
                torch._foreach_clamp_min_(norms, SMALLEST)
                torch._foreach_div_(parameters, norms)
            else:
                torch._foreach_mul_(parameters, 1 - group["lr"] * decay)
        torch._foreach_sub_(parameters, torch._foreach_mul(changes, group["lr"]))


def orthogonalised(tensors: list[Tensor]) -> list[Tensor]:
    """Each tensor, seen as a matrix [first dimension, all others], with all its singular values set to about 1.

    The singular vectors are kept. Tensors of one shape are batched.
    """
    of_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        of_shape[tensor.shape].append(number)
    found = list(tensors)
    for numbers in of_shape.values():
        matrices = torch.stack([_in_memory_order(tensors[number]).flatten(1) for number in numbers])
        wide = matrices.shape[1] <= matrices.shape[2]
        polar = newton_schulz(matrices if wide else matrices.mT)
        for number, matrix in zip(numbers, polar if wide else polar.mT, strict=True):
            shape = _in_memory_order(tensors[number]).shape
            found[number] = _as_kernel(matrix.reshape(shape)).to(tensors[number].dtype)
    return found


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Kernels as [out, row, column, in]: a view of channels-last memory, not a copy; the order does not matter here."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _as_kernel(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def newton_schulz(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """`iterations` of X = a X + b (X X^T) X + c (X X^T)^2 X on [n, rows, columns], no fewer columns than rows.

    On a GPU in bf16, which is enough for it. Elsewhere in the matrices' own type, on X X^T alone: all factors are polynomials
    of it, so they commute, and the long matrices are multiplied twice in place of ten times.
    """
    matrices = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=SMALLEST)
    return (in_bf16 if matrices.is_cuda else by_squares)(matrices, iterations)


def in_bf16(matrices: Tensor, iterations: int) -> Tensor:
    """`newton_schulz` of matrices of norm 1, in bf16."""
    x = matrices.bfloat16()
    for _ in range(iterations):
        x = A * x + _rest(x @ x.mT) @ x
    return x


def by_squares(matrices: Tensor, iterations: int) -> Tensor:
    """`newton_schulz` of matrices of norm 1, on X X^T."""
    square = matrices @ matrices.mT
    identity = torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
    product = factor = A * identity + _rest(square)
    for _ in range(iterations - 1):
        square = factor @ square @ factor
        factor = A * identity + _rest(square)
        product = factor @ product
    return product @ matrices


def _rest(square: Tensor) -> Tensor:
    return B * square + C * (square @ square)
