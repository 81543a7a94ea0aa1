"""Batch-norm statistics at the evaluated image size, for trainings on shrunk images (`data.train_sizes`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.data import of_run
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.world import ALONE, World
from vgg_ddp.loaders import Loader
from vgg_ddp.model import VGG, batch_statistics
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.training.job import Job
from vgg_ddp.training.parts import build_preprocess, evaluation_loader

NEGLIGIBLE = 0.01  # share of shrunk images in the statistics


@contextlib.contextmanager
def statistics_at_evaluated_size(job: Job, network: nn.Module, state: State) -> Iterator[None]:
    """Inside the context, statistics of shrunk images are replaced by those of images as they are evaluated.

    They are measured on training images without augmentation, the same on every rank. All ranks together.
    """
    if not _are_of_shrunk_images(job.config, state):
        yield
        return
    loader = job.data.validation_loader
    if job.data.validation.split != "train":
        loader = evaluation_loader(job.config, job.data.dataset, "train", job.world)
    with _measured(network, job.preprocess, loader, job.data.order.samples, job.config, job.world):
        yield


def take_statistics(network: VGG, config: Config, folder: Path, state: State, world: World) -> None:
    """Give a network whose statistics are of shrunk images those of images as they are evaluated. All ranks together.

    The checkpoint keeps the statistics that a continued training needs. Rank 0 measures on images of the training, whatever is
    to be evaluated; if they are gone, it says so, and the network keeps its own statistics.

    Args:
        folder, state: of its checkpoint.
    """
    if not _are_of_shrunk_images(config, state):
        return
    with world.together():
        if world.is_main:
            dataset = of_run.find(RunDirectory(folder.parent.parent))
            if dataset is None or dataset.sha256 != state.identity.get("dataset"):
                say(
                    f"{folder.name} was saved when images were shrunk (data.train_sizes), or soon after, and its training "
                    "images are gone: its batch-norm statistics are of small images, which costs accuracy"
                )
            else:
                _take(network, msgspec.structs.replace(config, loader="torch"), dataset, world)


def _take(network: VGG, config: Config, dataset: Dataset, world: World) -> None:
    alone = replace(ALONE, device=world.device)
    preprocess = build_preprocess(config, dataset, world.device)
    loader = evaluation_loader(config, dataset, "train", alone)
    samples, _ = held_out(dataset, config.data, config.seed)
    with _measured(network, preprocess, loader, samples, config, world):
        found = [buffer.clone() for buffer in network.buffers()]
    for buffer, values in zip(network.buffers(), found, strict=True):
        buffer.copy_(values)
    network.eval()


def _are_of_shrunk_images(config: Config, state: State) -> bool:
    """Whether shrunk images have more than a negligible share in the statistics; never if these are frozen."""
    steps = state.full_size_steps
    if steps is None:  # of an earlier version, which looked at the last epoch alone
        last = state.epoch if state.step_in_epoch else state.epoch - 1
        steps = 0 if last < len(config.data.train_sizes) else state.step
    trained = config.model.batch_norm and config.optimizer.features_rate > 0
    return trained and steps < state.step and share_of_shrunk_images(config, steps) > NEGLIGIBLE


def share_of_shrunk_images(config: Config, full_size_steps: int) -> float:
    """The share that shrunk images have in batch norms' running statistics, so many steps after the last of them.

    With averaged weights (`ema`), approximately their share in the averaged statistics, at the decay's final value.
    """
    running = averaged = 1.0
    for step in range(1, full_size_steps + 1):
        running *= (1 - config.model.norm_momentum) ** config.accumulation
        if not config.lookahead or step % config.lookahead == 0:
            averaged = config.ema * averaged + (1 - config.ema) * running
            running = averaged if config.lookahead else running
        if averaged < NEGLIGIBLE:
            break
    return averaged


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

    def images() -> Iterator[Tensor]:
        for batch in loader.stream(slices):
            world.activity.go_on()
            yield preprocess(batch.images)

    return batch_statistics.measured(network, images(), precision.autocast(config.precision, world.device))
