"""The step of a short script: the plain loop that others are compared with."""

from __future__ import annotations

import time

import torch
import torchvision
from torch import nn

from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.device_speed import wait_for
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.step import cached
from vgg_ddp.distributed.world import World


def plain_network(cell: Cell) -> nn.Module:
    """The same network of torchvision's layers, with one linear layer."""
    features = getattr(torchvision.models, f"{cell.network}_bn")(weights=None).features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * (cell.image_size // 32) ** 2, 10))


class PlainStep:
    """The step of a short script: torchvision's layers, fp32, contiguous NCHW, torch's SGD with its defaults."""

    def __init__(self, cell: Cell, world: World) -> None:
        self._network = plain_network(cell).to(world.device)
        images, labels = next(cached(cell, world))
        self._pixels, self._labels = ((images.permute(0, 3, 1, 2).float() - 128.0) / 64.0).contiguous(), labels
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self._criterion = nn.CrossEntropyLoss()

    def run(self, steps: int) -> float:
        """Seconds of `steps` steps."""
        with arithmetic("fp32"):
            start = time.perf_counter()
            for _ in range(steps):
                self._optimizer.zero_grad()
                self._criterion(self._network(self._pixels), self._labels).backward()
                self._optimizer.step()
            wait_for(self._pixels.device)
            return time.perf_counter() - start
