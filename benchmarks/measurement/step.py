"""The training loop's own step, from stored pixels to the update, for those who time it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.trials import BEFORE_RECORDING
from vgg_ddp.loaders import Batch
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim import precision
from vgg_ddp.training import cuda_graph, parts

CLASSES = 10
PHASES = ("forward", "backward", "update")


class TrainingStep:
    """The network and the engine of `config`, and the preprocessing before them.

    Attributes:
        is_graph: whether steps are a recorded CUDA graph, which always reduces.
        first_steps: how many steps are slower than all others: for a graph, the eager ones and the recorded one.

    Raises:
        UserError: the configuration cannot run here, or its step cannot be recorded as a graph.
    """

    def __init__(self, config: Config, world: World) -> None:
        config, _ = precision.set_arithmetic(config, world.device, world.of_all)
        cuda_graph.check(config, world)
        self.network = parts.build_network(config, CLASSES, world.device)
        self.engine = engines.build(config, self.network, world)
        config = cuda_graph.settled(config, self.engine)
        self._preprocess = Preprocess([128.0] * 3, [64.0] * 3, config.channels_last).to(world.device)
        self.is_graph = config.compile == "graph"
        self.first_steps = BEFORE_RECORDING + 1 if self.is_graph else 1
        self._graph = cuda_graph.recorded(self._whole, config, world) if self.is_graph else None

    def run(
        self, images: Tensor, labels: Tensor, reduce: bool = True, after_phase: Callable[[], None] = lambda: None
    ) -> None:
        """One step on uint8 [n, height, width, 3] and labels [n].

        Args:
            reduce: whether gradients are summed over the ranks.
            after_phase: called after each of `PHASES`; a graph is all in the first of them.
        """
        if self._graph is not None:
            self._graph(Batch(images, labels, Slice(0, 0, np.arange(len(labels)))), None)
            for _ in PHASES:
                after_phase()
            return
        loss, _ = self.engine.forward(self._preprocess(images), labels, last=reduce)
        after_phase()
        self.engine.backward(loss)
        after_phase()
        self.engine.step()
        after_phase()

    def _whole(self, batch: Batch, side: int | None) -> None:
        """The step that is recorded."""
        loss, _ = self.engine.forward(self._preprocess(batch.images), batch.labels, last=True)
        self.engine.backward(loss)
        self.engine.step()


def noise(count: int, image_size: int, world: World) -> tuple[Tensor, Tensor]:
    """Images, uint8 [n, side, side, 3], and labels of this rank's own, on its device."""
    generator = torch.Generator().manual_seed(world.rank)
    images = torch.randint(0, 256, (count, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return images.to(world.device), labels.to(world.device)
