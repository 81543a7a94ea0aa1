"""Training on the hardest images of each batch: those with the largest loss, which one forward pass of all finds.

Jiang et al., "Accelerating deep learning by focusing on the biggest losers" (selective backprop), 2019, arXiv 1910.00762;
here a fixed share of each micro-batch, those with the largest loss at the moment. A backward pass costs twice a forward
pass: half the images for 5/6 of the time, or for 7/12 where they are looked at with half their side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.config import Config
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
    """The part of a batch that is trained on, the same share of each, so that every rank has as many.

    Attributes:
        share: of the images of a micro-batch, rounded up.
        size: side of the images that are looked at, pixels, where they are larger; None: as they are trained on.
        network: whose loss it is: in evaluation mode, so that no statistics change, and without label smoothing.
        class_weights: of the loss, float [classes]; None weighs all the same.
        by_rank_zero: whether every rank takes the running statistics of rank 0 first. They are each rank's own otherwise, and
            a training that is continued from a checkpoint, which has those of rank 0, would choose other images.
    """

    share: float
    size: int | None
    network: nn.Module
    class_weights: Tensor | None
    arithmetic: torch.autocast
    by_rank_zero: bool

    @torch.no_grad()
    def of(self, batch: Batch, inputs: Inputs, side: int | None) -> Batch:
        """The hardest images of a micro-batch, in the batch's order; nothing here waits for the device."""
        sides = [size for size in (side, self.size) if size is not None]
        images, labels = inputs(batch, min(sides) if sides else None)
        if self.by_rank_zero:
            batch_statistics.take_rank_zero(self.network)
        self.network.eval()
        with self.arithmetic:
            logits = self.network(images).float()
            losses = functional.cross_entropy(logits, labels, self.class_weights, reduction="none")
        self.network.train()
        hardest = losses.topk(math.ceil(self.share * len(batch)), sorted=False).indices
        return batch.at(hardest.sort().values)


def build(config: Config, whole_network: Callable[[], nn.Module], world: World) -> EveryImage:
    """What chooses the images to train on, by `config.loss.hardest`.

    Args:
        whole_network: the engine's, which it trains.
    """
    loss = config.loss
    if loss.hardest == 1:
        return EveryImage()
    # Local SGD saves after outer steps alone, with which its engine does the same.
    apart = world.size > 1 and not config.model.sync_batch_norm and config.communication.synchronise_every == 1
    weights = torch.tensor(loss.class_weights, device=world.device) if isinstance(loss.class_weights, list) else None
    arithmetic = autocast(config.precision, world.device)
    return HardestImages(loss.hardest, loss.hardest_size, whole_network(), weights, arithmetic, by_rank_zero=apart)
