"""Training on the hardest images of each batch: those with the largest loss, which one forward pass of all finds.

Jiang et al., "Accelerating deep learning by focusing on the biggest losers" (selective backprop), 2019, arXiv 1910.00762;
here a fixed share of each micro-batch, those with the largest loss at the moment. A backward pass costs twice a forward
pass: half the images for 5/6 of the time, or for 7/12 where they are looked at with half their side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Batch
from vgg_ddp.model import batch_statistics
from vgg_ddp.optim.precision import autocast

Inputs = Callable[[Batch, int | None], tuple[Tensor, Tensor]]  # `vgg_ddp.training.job.Job.inputs`


class EveryImage:
    """Leaves a batch as it is."""

    def of(self, batch: Batch, inputs: Inputs, side: int | None) -> Batch:
        """The batch itself."""
        return batch


@dataclass(frozen=True)
class HardestImages(EveryImage):
    """Selects the same share of every micro-batch to train on, so that all ranks train on equally many images.

    Attributes:
        loss: says how many images are chosen, and to which side larger images are shrunk to find their losses.
        network: computes the losses, without dropout. Its batch norms use these images' statistics, as in training,
            since the running ones may be of images of another size; the running ones do not change.
        class_weights: of the loss, float [classes]; None weighs all the same.
    """

    loss: LossConfig
    network: nn.Module
    class_weights: Tensor | None
    arithmetic: torch.autocast

    @torch.no_grad()
    def of(self, batch: Batch, inputs: Inputs, side: int | None) -> Batch:
        """The hardest images of a micro-batch, in the batch's order; nothing here waits for the device."""
        sides = [size for size in (side, self.loss.hardest_size) if size is not None]
        images, labels = inputs(batch, min(sides) if sides else None)
        dropouts = [module for module in self.network.modules() if isinstance(module, nn.Dropout)]
        for dropout in dropouts:
            dropout.eval()
        with batch_statistics.kept(self.network), self.arithmetic:
            logits = self.network(images).float()
            losses = functional.cross_entropy(logits, labels, self.class_weights, reduction="none")
        for dropout in dropouts:
            dropout.train()
        hardest = losses.topk(self.loss.trained_on(len(batch)), sorted=False).indices
        return batch.at(hardest.sort().values)


def build(config: Config, whole_network: Callable[[], nn.Module], world: World) -> EveryImage:
    """What chooses the images to train on, by `config.loss.hardest`.

    Args:
        whole_network: the engine's, which it trains.
    """
    loss = config.loss
    if loss.hardest == 1:
        return EveryImage()
    weights = torch.tensor(loss.class_weights, device=world.device) if isinstance(loss.class_weights, list) else None
    arithmetic = autocast(config.precision, world.device)
    return HardestImages(loss, whole_network(), weights, arithmetic)
