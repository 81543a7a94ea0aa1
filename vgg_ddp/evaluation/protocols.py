"""The paper's ways of showing a network a test image (section 3.2): at several scales, whole, in many crops, mirrored too.

And that of records on CIFAR-10, which moves it by a pixel.

Each image is decoded once, on the CPU, whichever loader the training had, and resized whole; what the network sees are parts of
that. The soft-max of all views is averaged; of a dense view, the scores are averaged over their map first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.augment.geometry import Geometry, resized_shapes
from vgg_ddp.augment.pixels import resized
from vgg_ddp.config import Config
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.splits import Split
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation.exchange import of_all_ranks, use_rank_zero_buffers
from vgg_ddp.loaders.choice import check_sizes
from vgg_ddp.model import VGG
from vgg_ddp.model.fully_convolutional import FullyConvolutional
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim.precision import autocast

METHODS = {
    "single": ("centre",),
    "shifted": ("centre", "shifted"),
    "dense": ("dense",),
    "multicrop": ("grid",),
    "dense+multicrop": ("dense", "grid"),
}
SEEN = {
    "centre": "its centre",
    "shifted": "the same a pixel to the upper left and to the lower right",
    "dense": "all of it, densely",
    "grid": "5 x 5 crops",
}
ALONG = 5  # crops along each side: 5 x 5 of each image and its mirror image are the paper's 50
VIEWS = {"centre": 1, "shifted": 2, "dense": 1, "grid": ALONG**2}


@dataclass(frozen=True)
class Protocol:
    """How a network is shown an image.

    Attributes:
        name: of `evaluate.protocol`.
        scales: the paper's Q: what the shorter side is resized to, pixels; None keeps an image's size.
        flips: whether mirrored images are averaged over too.
        image_size: side of the network's input, pixels.
        enough: an image has no other view if the first gives a class this probability or more; None: every image has all views.
    """

    name: str
    scales: tuple[int | None, ...]
    flips: bool
    image_size: int
    enough: float | None = None

    @staticmethod
    def of(config: Config) -> Protocol:
        """The protocol that `config` asks for, with data-dependent keys settled."""
        keys, mirrored = config.evaluate, config.augment.flip is not False
        flips = keys.protocol != "single" and mirrored if keys.flips == "auto" else keys.flips
        scales, enough = tuple(keys.scales) or (config.data.shorter_side,), None if keys.views == "all" else keys.views
        return Protocol(keys.protocol, scales, flips, config.data.image_size, enough)

    def describe(self) -> dict[str, Any]:
        """The same for summary.json, with the number of crops of an image, or maps of it, that are averaged over."""
        views = sum(VIEWS[method] for method in METHODS[self.name]) * len(self.scales) * (1 + self.flips)
        sizes = [f"{scale} pixels" if scale else "its own size" for scale in self.scales]
        text = f"{' and '.join(SEEN[method] for method in METHODS[self.name])}, at {', '.join(sizes)}"
        text += ", mirrored too" * self.flips
        if self.enough is not None:
            text += f"; only the first, where that gives a class a probability of {self.enough:g} or more"
        return {
            "name": self.name,
            "scales": list(self.scales),
            "flips": self.flips,
            "views": views,
            **({} if self.enough is None else {"enough": self.enough}),
            "text": text,
        }

    def each(self) -> list[tuple[int, bool, str]]:
        """The views to average over: for each, the number of its scale, whether it is mirrored, and its kind."""
        mirrored = (False, True) if self.flips else (False,)
        return list(itertools.product(range(len(self.scales)), mirrored, METHODS[self.name]))


def crops(images: Tensor, size: int, along: int) -> Tensor:
    """Squares of `size` pixels on a regular grid from edge to edge, `along` x `along` of them; one is in the centre.

    Args:
        images: [n, height, width, 3].

    Returns:
        [n, along * along, size, size, 3].
    """
    rows, columns = (_offsets(length - size, along) for length in images.shape[1:3])
    cut = [images[:, top : top + size, left : left + size] for top in rows for left in columns]
    return torch.stack(cut, dim=1)


def shifted(images: Tensor, size: int) -> Tensor:
    """The square in the centre moved by a pixel to the upper left, and to the lower right; edges are reflected.

    airbench94 (Jordan 2024, arXiv 2404.00498, section 3.5), which gives both together the weight of the centre, as the mean
    over `METHODS` does; it averages logits, not the soft-max.

    Args:
        images: [n, height, width, 3].

    Returns:
        [n, 2, size, size, 3].
    """
    moved = []
    for step in (-1, 1):
        places = []
        for length in images.shape[1:3]:
            index = torch.arange(size) + _offsets(length - size, 1)[0] + step
            places.append(torch.where(index < length, index, 2 * (length - 1) - index).abs())
        moved.append(images[:, places[0]][:, :, places[1]])
    return torch.stack(moved, dim=1)


def _offsets(room: int, along: int) -> list[int]:
    if along == 1:
        return [(room + 1) // 2]  # as `Geometry` has it
    return [math.floor(room * k / (along - 1) + 0.5) for k in range(along)]


class Asked:
    """A network that classifies images by a protocol.

    Args:
        network: in evaluation mode.
        pixels: at most, in one forward pass, except for a single image that has more.
    """

    def __init__(
        self,
        protocol: Protocol,
        network: VGG,
        preprocess: Preprocess,
        pixels: int,
        precision: str,
        world: World,
    ) -> None:
        self._protocol, self._network, self._preprocess = protocol, network, preprocess
        self._pixels, self._precision, self._world = pixels, precision, world
        self._dense = FullyConvolutional(network, protocol.image_size)

    def log_probabilities(self, pictures: Sequence[Sequence[NDArray[np.uint8]]]) -> Tensor:
        """The logarithm of the averaged soft-max of some images, float64 [n, classes].

        Args:
            pictures: each image at each scale, [height, width, 3].
        """
        first, *others = self._protocol.each()
        found, enough = self._of_views(pictures, *first), self._protocol.enough
        doubted = torch.arange(len(found))
        if enough is not None:
            doubted = (found.exp().amax(dim=1) < enough).nonzero()[:, 0].cpu()
        if len(doubted):
            few = [pictures[number] for number in doubted]
            terms = [found[doubted], *(self._of_views(few, *which) for which in others)]
            found[doubted] = _averaged(torch.stack(terms, dim=1))
        return found

    def _of_views(
        self, pictures: Sequence[Sequence[NDArray[np.uint8]]], scale: int, mirrored: bool, method: str
    ) -> Tensor:
        """[n, classes]."""
        of_scale = [picture[scale] for picture in pictures]
        images = [torch.from_numpy(image if image.flags.writeable else image.copy()) for image in of_scale]
        if mirrored:
            images = [image.flip(1) for image in images]
        if method == "dense":
            return self._dense_scores(images).log_softmax(dim=1)
        size, views = self._protocol.image_size, VIEWS[method]
        at_once = max(1, self._pixels // size**2)
        few = max(1, at_once // views)
        parts = []
        for first in range(0, len(images), few):  # squares of one size, whatever the shapes of the images
            some = [image[None] for image in images[first : first + few]]
            cut = [shifted(one, size) if method == "shifted" else crops(one, size, math.isqrt(views)) for one in some]
            squares = torch.cat(cut).flatten(0, 1).split(at_once)
            logits = torch.cat([self._scores(self._network, those) for those in squares])
            parts.append(logits.unflatten(0, (len(some), views)).log_softmax(dim=2))
        return _averaged(torch.cat(parts))

    def _dense_scores(self, images: list[Tensor]) -> Tensor:
        """The mean of each image's map of scores, [n, classes]; those of one shape go together."""
        shapes = [image.shape for image in images]
        order, scores = list[int](), list[Tensor]()
        for shape in dict.fromkeys(shapes):
            which = [place for place, other in enumerate(shapes) if other == shape]
            at_once = max(1, self._pixels // (shape[0] * shape[1]))
            for first in range(0, len(which), at_once):
                some = which[first : first + at_once]
                scores.append(
                    self._scores(self._dense, torch.stack([images[place] for place in some])).mean(dim=(2, 3))
                )
                order += some
        return torch.cat(scores)[torch.tensor(order).argsort()]

    def _scores(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with autocast(self._precision, self._world.device):
            scores = network(self._preprocess(images.to(self._world.device))).double()
        self._world.activity.go_on()
        return scores


def _averaged(log_probabilities: Tensor) -> Tensor:
    """The logarithm of the mean over the second dimension, [n, views, classes] to [n, classes]."""
    return log_probabilities.logsumexp(dim=1) - math.log(log_probabilities.shape[1])


@torch.no_grad()
def predict(
    protocol: Protocol,
    network: VGG,
    preprocess: Preprocess,
    split: Split,
    samples: NDArray[np.int64],
    config: Config,
    world: World,
) -> Predictions | None:
    """The network's answers on `samples` by a protocol, each image exactly once; on rank 0, None elsewhere.

    Which images share a forward pass does not depend on the world size, so neither do the answers. The logits are logarithms
    of the averaged probabilities. The network is left in training mode.

    Raises:
        UserError: an image that is too small for the network, or that cannot be decoded.
    """
    with world.together():
        for scale in protocol.scales:
            check_sizes(split, Geometry(None, protocol.image_size, None if scale is None else (scale, scale)))
    use_rank_zero_buffers(network, world)
    network.eval()
    pixels = config.evaluate.batch * protocol.image_size**2
    asked = Asked(protocol, network, preprocess, pixels, config.precision, world)
    samples = samples[np.lexsort(split.shapes(samples).T)]  # images of one shape share a pass of the dense network
    logits, labels, indices = [], [], []
    at_once = max(1, pixels // _largest(split, protocol))
    pieces = [piece.samples for piece in evaluation_slices(samples, at_once, world.rank, world.size)]
    for piece, pictures in _read(split, pieces, protocol, world):
        logits.append(asked.log_probabilities(pictures).float().cpu())
        labels.append(torch.from_numpy(split.labels[piece]))
        indices.append(piece)
        world.activity.go_on()
    network.train()
    return of_all_ranks(logits, labels, indices, samples, world)


def _largest(split: Split, protocol: Protocol) -> int:
    """Pixels of the largest image, all scales together."""
    shapes = split.shapes(np.arange(len(split)))
    of_scales = [
        resized_shapes(shapes, None if scale is None else np.full(len(shapes), scale)).prod(axis=1)
        for scale in protocol.scales
    ]
    return int(np.sum(of_scales, axis=0).max())


def _read(
    split: Split, pieces: list[NDArray[np.int64]], protocol: Protocol, world: World
) -> Iterator[tuple[NDArray[np.int64], list[list[NDArray[np.uint8]]]]]:
    """Samples and their pixels at every scale, piece by piece; the next piece is read while one is processed."""

    def scaled(sample: int) -> list[NDArray[np.uint8]]:
        image = split.decode(sample)
        return [resized(image, scale) for scale in protocol.scales]

    with ThreadPoolExecutor(world.share_of_cores()) as pool:
        ahead = [pool.map(scaled, piece.tolist()) for piece in pieces[:1]]
        for number, piece in enumerate(pieces):
            ahead += [pool.map(scaled, later.tolist()) for later in pieces[number + 1 : number + 2]]
            pictures = []
            for picture in ahead.pop(0):
                pictures.append(picture)
                world.activity.go_on()
            yield piece, pictures
