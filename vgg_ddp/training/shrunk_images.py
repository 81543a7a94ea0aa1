"""Batch-norm statistics of images as they are evaluated, for a network that has seen shrunk ones last (`data.train_sizes`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Loader
from vgg_ddp.model import VGG, batch_statistics
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.training.job import Job
from vgg_ddp.training.parts import evaluation_loader


@contextlib.contextmanager
def statistics_at_evaluated_size(job: Job, network: nn.Module, epoch: int) -> Iterator[None]:
    """Inside the context, where images were shrunk in `epoch`: statistics of images as they are evaluated.

    They are measured on training images without augmentation, the same on every rank. All ranks together.
    """
    if not _are_of_shrunk_images(job.config, epoch):
        yield
        return
    loader = job.data.validation_loader
    if job.data.validation.split != "train":
        loader = evaluation_loader(job.config, job.data.dataset, "train", job.world)
    with _measured(network, job.preprocess, loader, job.data.order.samples, job.config, job.world):
        yield


def take_statistics(
    network: VGG, preprocess: Preprocess, config: Config, dataset: Dataset, state: State, world: World
) -> None:
    """Give the network of a checkpoint that was saved after shrunk images the statistics of images as they are evaluated.

    A checkpoint has those that a training goes on with. Where the images that it was trained on are gone, it keeps them. All
    ranks together.
    """
    last = state.epoch if state.step_in_epoch else state.epoch - 1
    trained_on = state.identity.get("dataset") == dataset.sha256 and dataset.has_images
    if last < 0 or not _are_of_shrunk_images(config, last) or not trained_on:
        return
    with world.together():
        loader = evaluation_loader(config, dataset, "train", world)
    with _measured(network, preprocess, loader, held_out(dataset, config.data, config.seed)[0], config, world):
        found = [buffer.clone() for buffer in network.buffers()]
    for buffer, values in zip(network.buffers(), found, strict=True):
        buffer.copy_(values)
    network.eval()


def _are_of_shrunk_images(config: Config, epoch: int) -> bool:
    """Whether the statistics after this epoch are; frozen ones fit no size, or every one."""
    return epoch < len(config.data.train_sizes) and config.optimizer.features_rate > 0


def _measured(
    network: nn.Module,
    preprocess: Preprocess,
    loader: Loader,
    samples: NDArray[np.int64],
    config: Config,
    world: World,
) -> contextlib.AbstractContextManager[None]:
    samples = samples[:: -(-len(samples) // batch_statistics.IMAGES)]
    slices = evaluation_slices(samples, max(2, min(batch_statistics.BATCH, config.evaluate.batch)))
    images = (preprocess(batch.images) for batch in loader.stream(slices))
    return batch_statistics.measured(network, images, precision.autocast(config.precision, world.device))
