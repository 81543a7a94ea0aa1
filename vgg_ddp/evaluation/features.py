"""The features before a network's last layer, kept while the network answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.analysis.neighbours import Features
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.distributed.world import World
from vgg_ddp.model import VGG

MOST_BYTES = 409_600_000  # of one split's features, over all ranks: 50,000 images of the paper's 4096


class Kept:
    """Features of some samples of a split, from the forward passes of this rank (see `evaluation.inference.predict`)."""

    def __init__(self, network: VGG, samples: NDArray[np.int64], batch: int, world: World) -> None:
        self.width = last_layer(network).in_features
        most = max(1, MOST_BYTES // (2 * self.width))
        self.samples = samples[:: max(1, -(-len(samples) // most))]
        self._slices = evaluation_slices(samples, batch, world.rank, world.size)
        self._world, self._parts, self._indices = world, list[NDArray[np.float16]](), list[NDArray[np.int64]]()

    def add(self, features: Tensor) -> None:
        """Keep what the last layer is given with the next batch, [n, width]."""
        samples = next(self._slices).samples
        chosen = np.isin(samples, self.samples)
        self._parts.append(of_length_one(features[torch.from_numpy(chosen).to(features.device)]))
        self._indices.append(samples[chosen])

    def gathered(self) -> Features | None:
        """The features of `samples`, of all ranks, on rank 0; None elsewhere. All ranks together."""
        features = np.concatenate([np.empty((0, self.width), np.float16), *self._parts])
        indices = np.concatenate([np.empty(0, np.int64), *self._indices])
        self._world.activity.go_on(waits=True)
        all_features, all_indices = (self._world.gather(array.tobytes()) for array in (features, indices))
        if not self._world.is_main:
            return None  # it waits for rank 0, which goes on alone
        self._world.activity.go_on()
        index = np.frombuffer(b"".join(all_indices), np.int64)
        order = np.argsort(index, kind="stable")
        return np.frombuffer(b"".join(all_features), np.float16).reshape(len(index), self.width)[order]


@contextmanager
def kept(network: VGG, samples: NDArray[np.int64], batch: int, world: World) -> Iterator[Kept]:
    """Keeps the features of `samples` while `predict` has them answered in batches of `batch`."""
    features = Kept(network, samples, batch, world)
    with _shown_to(network, features.add):
        yield features


@contextmanager
def caught(network: VGG) -> Iterator[list[NDArray[np.float16]]]:
    """Collects the features [n, width] of each batch that the network is shown."""
    found: list[NDArray[np.float16]] = []
    with _shown_to(network, lambda features: found.append(of_length_one(features))):
        yield found


@contextmanager
def _shown_to(network: VGG, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Gives `keep` what the last layer is given, [n, width], with each batch."""
    hook = last_layer(network).register_forward_pre_hook(lambda layer, inputs: keep(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def last_layer(network: VGG) -> nn.Linear:
    """The layer that makes logits of features."""
    return next(layer for layer in reversed(network.classifier) if isinstance(layer, nn.Linear))  # before `logit_scale`


def of_length_one(features: Tensor) -> NDArray[np.float16]:
    """Features [n, width] in half precision, each divided by its length; zeros for what is no number."""
    return functional.normalize(features.float().nan_to_num(0.0, 0.0, 0.0), dim=1).half().cpu().numpy()
