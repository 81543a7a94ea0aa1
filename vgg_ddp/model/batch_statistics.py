"""Batch-norm statistics measured at the size of the images that are evaluated, put back, and taken from rank 0.

A network that has seen small images so far (`data.train_sizes`) keeps running statistics of those. At another size the
statistics differ, and it is right about as often as by chance, whatever it has learned (Touvron et al., "Fixing the
train-test resolution discrepancy", NeurIPS 2019, section 3). With statistics measured anew, a validation shows what it learned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

IMAGES = 2048  # to measure on, at most
BATCH = 256  # images in a forward pass, about as many as in training


@contextlib.contextmanager
def measured(network: nn.Module, batches: Iterable[Tensor], autocast: torch.autocast) -> Iterator[None]:
    """Inside the context the network's batch norms use the statistics of `batches`; after it, their own again.

    Args:
        batches: float [n, 3, side, side]; the statistics are the mean over the batches.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    with kept(network):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean of all batches, each counting the same
            with torch.no_grad(), autocast:
                for images in batches:
                    if len(images) > 1:  # a single image has no variance in a layer of one pixel
                        network(images)
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextlib.contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """After the context the network's buffers, which are its batch norms' running statistics, are what they were before it."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


@torch.no_grad()
def take_rank_zero(network: nn.Module) -> None:
    """Give every rank the running statistics of rank 0, in one message on the device. All ranks together."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]  # the rest counts batches, alike
    if buffers:
        values = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(values, 0)
        for buffer, value in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(value.view_as(buffer))
