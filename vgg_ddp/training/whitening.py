"""The first convolution of a training whose `model.whiten` is on: filters that whiten patches of its training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import torch
from torch import Tensor

from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.world import ALONE, World
from vgg_ddp.model import VGG, whitening
from vgg_ddp.randomness import permutation
from vgg_ddp.training.initial_weights import InitialWeights
from vgg_ddp.training.parts import build_preprocess, empty_network, evaluation_loader

IMAGES = 5000  # to measure on, at most, as airbench94 does


def added(initial: InitialWeights, config: Config, dataset: Dataset, world: World) -> InitialWeights:
    """`initial`, and after it a whitening first convolution, where `config.model.whiten` asks for it. All ranks together.

    Rank 0 measures, and every rank gets its bits: another processor's may differ. A checkpoint has them too.
    """
    if not config.model.whiten:
        return initial
    found = world.from_main(lambda: _filters(config, dataset).numpy().tobytes())
    values = torch.from_numpy(np.frombuffer(found, dtype=np.float32).copy())
    said = f"first convolution: frozen, it whitens patches of {len(_samples(config, dataset))} training images"
    return dataclasses.replace(initial, set=partial(_set, initial.set, values), choices=[*initial.choices, said])


@torch.no_grad()
def _set(before: Callable[[VGG], None], values: Tensor, network: VGG) -> None:
    before(network)
    weight = network.get_parameter("features.0.weight")
    weight.copy_(values.view(weight.shape))


def _filters(config: Config, dataset: Dataset) -> Tensor:
    outputs = len(empty_network(config, len(dataset.classes), ALONE.device).get_parameter("features.0.weight"))
    return whitening.filters(whitening.patch_moments(_images(config, dataset)), outputs, config.seed)


def _images(config: Config, dataset: Dataset) -> Iterator[Tensor]:
    """Normalised training images without augmentation, float [n, 3, size, size], some after the others."""
    data = msgspec.structs.replace(config.data, workers=0)
    config = msgspec.structs.replace(config, loader="torch", channels_last=False, data=data)
    loader = evaluation_loader(config, dataset, "train", ALONE)
    preprocess = build_preprocess(config, dataset, ALONE.device)
    for batch in loader.stream(evaluation_slices(_samples(config, dataset), config.evaluate.batch)):
        yield preprocess(batch.images)


def _samples(config: Config, dataset: Dataset) -> np.ndarray:
    trained, _ = held_out(dataset, config.data, config.seed)
    chosen = permutation(config.seed, 0, len(trained), "whitening")[:IMAGES]
    return np.sort(trained[chosen])
