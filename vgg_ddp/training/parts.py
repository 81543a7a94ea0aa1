"""From a configuration to the parts of a run: data set, order, loaders, network, preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vgg_ddp import loaders
from vgg_ddp.augment.appearance import Appearance
from vgg_ddp.augment.geometry import evaluation_geometry, training_geometry
from vgg_ddp.config import Config
from vgg_ddp.data.balanced_order import BalancedOrder
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.normalisation import normalisation
from vgg_ddp.data.order import Order
from vgg_ddp.data.validation import HeldOut, held_out
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.loaders.choice import Choice, choose, fallbacks
from vgg_ddp.model import VGG, fusion, initialize, trained_parts, vgg
from vgg_ddp.model.convolution import Convolution, CpuConvolution
from vgg_ddp.model.preprocess import Preprocess


@dataclass(frozen=True)
class Data:
    """The data of a training.

    Attributes:
        order: which samples make up which global batch.
        validation: the images that are validated on.
        train_loader: augmented training images.
        validation_loader: images of the split that `validation` is of, as they are.
        loader: which loader it is, and why.
        fallbacks: what it does in place of what was asked for.
    """

    dataset: Dataset
    order: Order
    validation: HeldOut
    train_loader: loaders.Loader
    validation_loader: loaders.Loader
    loader: Choice
    fallbacks: list[str]


def build_data(config: Config, dataset: Dataset, world: World) -> Data:
    """Order and loaders.

    Raises:
        UserError: a batch that does not divide, too few images for one, weights for other classes, or no memory for workers.
    """
    share = config.local_batch(world.size)
    weights, classes = config.loss.class_weights, len(dataset.classes)
    if isinstance(weights, list) and len(weights) != classes:
        raise UserError(f"loss.class_weights has {len(weights)} weights for the {classes} classes of {dataset.name}")
    split = dataset.split("train")
    train, validation = held_out(dataset, config.data, config.seed)
    plain = Order(config.seed, train, config.batch)
    order = BalancedOrder(**vars(plain), labels=split.labels[train]) if config.data.balance_classes else plain
    if order.steps_per_epoch == 0:
        raise UserError(
            f"{dataset.name} has {len(train)} images to train on, fewer than one batch of {config.batch}; use a smaller batch"
            ", or more of the images (data.train_share, data.validation)"
        )
    choice = choose(config.loader, split, config.data, world)
    left_out = fallbacks(choice, config.data, world, max(share, config.evaluate.batch))
    geometry = training_geometry(config.data, config.augment, config.seed)
    return Data(
        dataset,
        order,
        validation,
        loaders.build(choice.name, split, geometry, config.data, world, share),
        evaluation_loader(config, dataset, validation.split, world),
        choice,
        left_out,
    )


def evaluation_loader(config: Config, dataset: Dataset, split: str, world: World) -> loaders.Loader:
    """A loader of a split's images as they are: resized and centre-cropped, in batches of `evaluate.batch`."""
    images, geometry = dataset.split(split), evaluation_geometry(config.data)
    choice = choose(config.loader, images, config.data, world, evaluated=True)
    return loaders.build(choice.name, images, geometry, config.data, world, max(2, config.evaluate.batch))


def empty_network(config: Config, num_classes: int, device: torch.device) -> VGG:
    """The network for `device` on the meta device: names, shapes and types, and no memory."""
    with torch.device("meta"):
        network = vgg(
            config.network,
            config.model.batch_norm,
            config.model.head,
            num_classes,
            config.data.image_size,
            config.model.dropout,
            CpuConvolution if device.type == "cpu" else Convolution,
            **config.model.variant,
        )
    network.checkpointing = config.recompute
    trained_parts.settle(network, config)
    return network


def build_network(
    config: Config, num_classes: int, device: torch.device, set_weights: Callable[[VGG], None] | None = None
) -> VGG:
    """The network on its device, in its memory layout, with its initial weights or those that `set_weights` gives it."""
    network = empty_network(config, num_classes, device).to_empty(device="cpu")
    (set_weights or partial(initialize, method=config.model.initialization, seed=config.seed))(network)
    fusion.fuse(network.features, config, device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def build_preprocess(config: Config, dataset: Dataset, device: torch.device) -> Preprocess:
    """Normalisation as `data.normalisation` says."""
    return Preprocess(*normalisation(config.data, dataset.record), config.channels_last).to(device)


def build_appearance(config: Config, dataset: Dataset, device: torch.device) -> Appearance:
    """What changes the look of training images."""
    covariance, mean = np.array(dataset.record.covariance), np.array(dataset.record.mean)
    return Appearance(config.augment, config.seed, covariance, mean, len(dataset.classes), device)
