"""What a trained network makes of a folder of anyone's images (`vgg-ddp evaluate RUN --images FOLDER`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.analysis import neighbours
from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.neighbours import Features
from vgg_ddp.augment.geometry import evaluation_geometry
from vgg_ddp.augment.pixels import resized, window
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.decoding import decode_image
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation import features, inference
from vgg_ddp.evaluation.chosen_images import training_images
from vgg_ddp.evaluation.image_files import find_images
from vgg_ddp.evaluation.protocols import Asked, Protocol
from vgg_ddp.optim import precision
from vgg_ddp.run import checkpoint
from vgg_ddp.training import loading, parts, shrunk_images

WAITING = 64  # whole photographs in memory at once, at most
MOST_TRAINING_IMAGES = 2_000  # searched for the nearest ones, at most; evenly spread
MOST_TRAINING_PIXELS = 10_000_000  # of all of them, at most, at the size that the network sees: seconds on two cores


@dataclass(frozen=True)
class Found:
    """An image file and its pixels [height, width, 3]; `name` is its path in the folder."""

    name: str
    pixels: NDArray[np.uint8]


def read(files: list[Path], folder: Path, unreadable: list[str]) -> Iterator[Found]:
    """The files that can be decoded; what is wrong with the others is added to `unreadable`."""
    for path in files:
        name = path.name if path == folder else str(path.relative_to(folder))
        try:
            yield Found(name, decode_image(path.read_bytes()))
        except Exception as error:
            unreadable.append(f"{name} cannot be decoded: {error}")


def seen(pixels: NDArray[np.uint8], data: DataConfig) -> NDArray[np.uint8]:
    """An image as the network sees it, [size, size, 3]: as in training's validation, and as an exported network wants it.

    An image too small for a square of `data.image_size`, which would be refused in a data set, is enlarged to it.
    """
    geometry = evaluation_geometry(data)
    if not geometry.resamples and min(pixels.shape[:2]) < geometry.size:
        geometry = replace(geometry, resize=(geometry.size, geometry.size))
    box = geometry.place(Slice(0, 0, np.zeros(1, dtype=np.int64)), np.array([pixels.shape[:2]])).box[0]
    return window(pixels, box, geometry)


@dataclass(frozen=True)
class AnsweredImage:
    """A network's answer to one image.

    Attributes:
        name: the path of its file in the folder.
        label: the class that one of its folders is named after, or None.
        probabilities: float64 [classes].
        pixels: of the image, uint8 [height, width, 3].
        seen: what the network sees of it, uint8 [size, size, 3].
        features: before the last layer, float16 [width], of length one; None where several views were averaged over.
    """

    name: str
    label: str | None
    probabilities: NDArray[np.float64]
    pixels: NDArray[np.uint8]
    seen: NDArray[np.uint8]
    features: NDArray[np.float16] | None


class OwnImages:
    """A trained network, to be shown anyone's images by the protocol that `config` asks for.

    Where the protocol would keep images at their own size, they are resized to the size that the network sees.

    Args:
        known: the classes and the normalisation of the data that it was trained on.
        weights: the folder of the checkpoint.

    Raises:
        UserError: a checkpoint that is damaged or of another network.
    """

    def __init__(self, config: Config, known: Dataset, weights: Path, world: World) -> None:
        self._config, self._classes, self._world = config, known.classes, world
        contents = checkpoint.read(weights)
        self._state = checkpoint.state(contents)
        load = partial(loading.load_weights, contents, weights)
        self._network = parts.build_network(config, len(known.classes), world.device, load).eval()
        self._preprocess = parts.build_preprocess(config, known, world.device)
        shrunk_images.take_statistics(self._network, config, weights, self._state, world)
        protocol = Protocol.of(config)
        scales = tuple(scale or protocol.image_size for scale in protocol.scales)
        self._protocol = replace(protocol, scales=scales)
        pixels = config.evaluate.batch * self._protocol.image_size**2
        self._asked = Asked(self._protocol, self._network, self._preprocess, pixels, config.precision, world)

    @property
    def views(self) -> tuple[int, str]:
        """How many views of an image are averaged over, and which, in words; "" where that is as in training's validation."""
        described = self._protocol.describe()
        return described["views"], described["text"] if self._config.evaluate.name else ""

    @torch.no_grad()
    def answers(self, folder: Path, unreadable: list[str]) -> Iterator[AnsweredImage]:
        """The answers to the images in `folder`, in the order of their names; a line on each image that cannot be decoded is
        added to `unreadable`.

        Raises:
            UserError: no image in the folder.
        """
        images = read(find_images(folder), folder, unreadable)
        while batch := list(islice(images, min(self._config.evaluate.batch, WAITING))):
            views = [seen(image.pixels, self._config.data) for image in batch]
            log_probabilities, found = self._ask(batch, views)
            for image, view, row, one in zip(batch, views, log_probabilities.exp().cpu().numpy(), found, strict=True):
                label = class_of(image.name, self._classes)
                yield AnsweredImage(image.name, label, row, image.pixels, view, one)

    def _ask(
        self, batch: list[Found], views: list[NDArray[np.uint8]]
    ) -> tuple[Tensor, list[NDArray[np.float16] | None]]:
        if self._config.evaluate.name:
            scaled = [at_scales(image.pixels, self._protocol) for image in batch]
            return self._asked.log_probabilities(scaled), [None] * len(batch)
        with features.caught(self._network) as found, precision.autocast(self._config.precision, self._world.device):
            images = torch.from_numpy(np.stack(views)).to(self._world.device)
            logits = self._network(self._preprocess(images)).float()
        return logits.double().log_softmax(dim=1), list(found[0])

    def nearest(self, dataset: Dataset, of_images: Sequence[Features]) -> tuple[NDArray[np.int64], int]:
        """The training images most like each of some images, by their features, and how many were searched.

        Args:
            dataset: what the network was trained on, with its images.
            of_images: [width] each.

        Returns: indices into the train split, int64 [n, up to `neighbours.SHOWN`], the nearest first; none where it is not
            known which images those were, or where `analysis.budget` says so.

        Raises:
            UserError: a training image that cannot be decoded, or is too small for what is asked for.
        """
        trained = training_images(self._config, dataset, self._state)
        most = min(MOST_TRAINING_IMAGES, max(1, MOST_TRAINING_PIXELS // self._config.data.image_size**2))
        samples = trained.samples[spread(len(trained), most)]
        if not len(samples) or self._config.analysis.budget == "none":
            return np.empty((len(of_images), 0), np.int64), 0
        by_torch = msgspec.structs.replace(self._config, loader="torch")  # which decodes no more than these
        loader = parts.evaluation_loader(by_torch, dataset, trained.split, self._world)
        with features.kept(self._network, samples, self._config.evaluate.batch, self._world) as kept:
            inference.predict(self._network, self._preprocess, loader, samples, self._config, self._world)
        of_training = kept.gathered()
        assert of_training is not None, "a world of one rank"
        return kept.samples[neighbours.nearest(np.stack(of_images), of_training, neighbours.SHOWN)], len(kept.samples)


def at_scales(pixels: NDArray[np.uint8], protocol: Protocol) -> list[NDArray[np.uint8]]:
    """An image at every scale of a protocol, [height, width, 3] each; enlarged where it is too small, as in `seen`."""
    scaled = [resized(pixels, scale) for scale in protocol.scales]
    size = protocol.image_size
    return [resized(image, size) if min(image.shape[:2]) < size else image for image in scaled]


def class_of(name: str, classes: list[str]) -> str | None:
    """The class that the nearest folder in the path `name` is named after; case may differ if only one matches."""
    for folder in Path(name).parts[-2::-1]:
        same = [one for one in classes if one.casefold() == folder.casefold()]
        if folder in classes or len(same) == 1:
            return folder if folder in classes else same[0]
    return None
