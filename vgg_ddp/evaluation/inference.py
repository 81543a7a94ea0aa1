"""Runs a network over a split: all ranks share the images, rank 0 gets every answer."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.config import Config
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation.exchange import of_all_ranks, use_rank_zero_buffers
from vgg_ddp.loaders import Loader
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim.precision import autocast


@torch.no_grad()
def predict(
    network: nn.Module,
    preprocess: Preprocess,
    loader: Loader,
    samples: NDArray[np.int64],
    config: Config,
    world: World,
) -> Predictions | None:
    """The network's answers on `samples`, each image exactly once; on rank 0, None elsewhere.

    The network is left in training mode.
    """
    use_rank_zero_buffers(network, world)
    network.eval()
    logits, labels, indices = [], [], []
    for images in loader.stream(evaluation_slices(samples, config.evaluate.batch, world.rank, world.size)):
        with autocast(config.precision, world.device):
            logits.append(network(preprocess(images.images)).float())
        labels.append(images.labels)
        indices.append(images.samples)
        world.activity.go_on()
    network.train()
    return of_all_ranks(logits, labels, indices, samples, world)
