"""What a trained network makes of a folder of anyone's images (`vgg-ddp evaluate RUN --images FOLDER`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.augment.geometry import evaluation_geometry
from vgg_ddp.augment.pixels import resized, window
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.decoding import decode_image
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation.image_files import find_images
from vgg_ddp.evaluation.protocols import Asked, Protocol
from vgg_ddp.optim import precision
from vgg_ddp.run import checkpoint
from vgg_ddp.training import loading, parts

WAITING = 64  # whole photographs in memory at once, at most


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

    One that is too small to cut a square of `data.image_size` from, which a data set may not have, is enlarged to it.
    """
    geometry = evaluation_geometry(data)
    if not geometry.resamples and min(pixels.shape[:2]) < geometry.size:
        geometry = replace(geometry, resize=(geometry.size, geometry.size))
    box = geometry.place(Slice(0, 0, np.zeros(1, dtype=np.int64)), np.array([pixels.shape[:2]])).box[0]
    return window(pixels, box, geometry)


@dataclass(frozen=True)
class Answered:
    """A network's answer to one image.

    Attributes:
        name: the path of its file in the folder.
        label: the class that one of its folders is named after, or None.
        probabilities: float64 [classes].
        pixels: of the image, uint8 [height, width, 3].
        seen: what the network sees of it, uint8 [size, size, 3].
    """

    name: str
    label: str | None
    probabilities: NDArray[np.float64]
    pixels: NDArray[np.uint8]
    seen: NDArray[np.uint8]


@torch.no_grad()
def answers(
    folder: Path, config: Config, dataset: Dataset, weights: Path, world: World, unreadable: list[str]
) -> Iterator[Answered]:
    """The answers to the images in `folder`, in the order of their names, by the protocol that `config` asks for; a line on
    each image that cannot be decoded is added to `unreadable`.

    Raises:
        UserError: no image in the folder, or a checkpoint that is damaged or of another network.
    """
    files = find_images(folder)
    load = partial(loading.load_weights, checkpoint.read(weights), weights)
    network = parts.build_network(config, len(dataset.classes), world.device, load).eval()
    preprocess = parts.build_preprocess(config, dataset, world.device)
    protocol = Protocol.of(config)
    pixels = config.evaluate.batch * protocol.image_size**2
    asked = Asked(protocol, network, preprocess, pixels, config.precision, world)

    def log_probabilities(batch: list[Found], views: list[NDArray[np.uint8]]) -> Tensor:
        if config.evaluate.name:
            return torch.cat([asked.log_probabilities(at_scales(image.pixels, protocol)) for image in batch])
        with precision.autocast(config.precision, world.device):
            logits = network(preprocess(torch.from_numpy(np.stack(views)).to(world.device))).float()
        return logits.double().log_softmax(dim=1)

    images = read(files, folder, unreadable)
    while batch := list(islice(images, min(config.evaluate.batch, WAITING))):
        views = [seen(image.pixels, config.data) for image in batch]
        probabilities = log_probabilities(batch, views).exp().cpu().numpy()
        for image, view, row in zip(batch, views, probabilities, strict=True):
            yield Answered(image.name, class_of(image.name, dataset.classes), row, image.pixels, view)


def at_scales(pixels: NDArray[np.uint8], protocol: Protocol) -> list[Tensor]:
    """An image at every scale of a protocol, uint8 [1, height, width, 3] each; enlarged where it is too small, as in `seen`."""
    scaled = [resized(pixels, scale) for scale in protocol.scales]
    size = protocol.image_size
    large = [resized(image, size) if min(image.shape[:2]) < size else image for image in scaled]
    return [torch.from_numpy(image)[None] for image in large]


def class_of(name: str, classes: list[str]) -> str | None:
    """The class that the nearest folder in a file's path `name` is called after; in other letters, `Truck` for `truck`, where
    only one class can be meant."""
    for folder in Path(name).parts[-2::-1]:
        same = [one for one in classes if one.casefold() == folder.casefold()]
        if folder in classes or len(same) == 1:
            return folder if folder in classes else same[0]
    return None
