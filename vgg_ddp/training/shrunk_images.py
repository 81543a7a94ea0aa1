"""Validation after an epoch of shrunk images (`data.train_sizes`), at the size of the images that are evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.model import batch_statistics
from vgg_ddp.optim import precision
from vgg_ddp.training.job import Job
from vgg_ddp.training.parts import evaluation_loader


@contextlib.contextmanager
def statistics_at_evaluated_size(job: Job, network: nn.Module, epoch: int) -> Iterator[None]:
    """Inside the context, where images were shrunk in `epoch`: batch-norm statistics of images as they are evaluated.

    They are measured on training images without augmentation, the same on every rank. All ranks together.
    """
    if (
        job.side(epoch) is None or job.config.optimizer.features_rate == 0
    ):  # frozen statistics fit no size, or every one
        yield
        return
    samples = job.data.order.samples
    samples = samples[:: -(-len(samples) // batch_statistics.IMAGES)]
    slices = evaluation_slices(samples, max(2, min(batch_statistics.BATCH, job.config.evaluate.batch)))
    loader = job.data.validation_loader
    if job.data.validation.split != "train":
        loader = evaluation_loader(job.config, job.data.dataset, "train", job.world)
    loaded = (job.preprocess(batch.images) for batch in loader.stream(slices))
    with batch_statistics.measured(network, loaded, precision.autocast(job.config.precision, job.world.device)):
        yield
