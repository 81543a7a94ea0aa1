"""Sync batch norm: batch statistics over the images of all ranks. torch's own runs on GPUs only, and waits in each layer.

Each rank sends the mean and variance of its images, and gets those of all images (Chan, Golub & LeVeque 1979, for
samples of equal size); the backward pass sends two sums for each channel. All ranks must have equally many images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all ranks; in evaluation mode it is `nn.BatchNorm2d`."""

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, channels, height, width], normalised. All ranks together, in training mode."""
        if not self.training:
            return super().forward(images)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the mean of all batches; the host waits for their number
            momentum = 1.0 / float(self.num_batches_tracked)
        return _Normalise.apply(images, self.weight, self.bias, self.running_mean, self.running_var, momentum, self.eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        epsilon: float,
    ) -> Tensor:
        own = torch.stack(torch.var_mean(images.float(), dim=(0, 2, 3), correction=0))
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        variances, means = torch.stack(every, dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        count = len(every) * images.numel() // images.shape[1]
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * count / (count - 1), momentum)  # unbiased, as torch keeps it
        context.save_for_backward(images, weight, mean, variance)
        context.epsilon, context.count = epsilon, count
        return functional.batch_norm(images, mean, variance, weight, bias, eps=epsilon)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        images, weight, mean, variance = context.saved_tensors
        normal = functional.batch_norm(images, mean, variance, eps=context.epsilon)
        own = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * normal).sum(dim=(0, 2, 3))]).float()
        total = own.clone()
        dist.all_reduce(total)
        shift, slope = (total / context.count).to(gradient.dtype)[:, :, None, None]
        scale = (weight * torch.rsqrt(variance + context.epsilon)).to(gradient.dtype)[:, None, None]
        return (gradient - shift - normal * slope) * scale, own[1], own[0], None, None, None, None


def convert(network: nn.Module) -> None:
    """Make every batch norm of `network` a sync batch norm, in place; parameters and their names stay."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _sync_batch_norm(child))


def _sync_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    converted = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    converted._parameters, converted._buffers = norm._parameters, norm._buffers
    return converted.train(norm.training)
