"""What a trained network makes of a folder of anyone's images: RUN/images/FOLDER/predictions.json and index.html.

Start it with `vgg-ddp evaluate RUN --images FOLDER`. One process does it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.augment.pixels import resample
from vgg_ddp.config import Config, load
from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data.dataset import Dataset, decode_image
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed import rank_process
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.evaluate import chosen_checkpoint
from vgg_ddp.optim import precision
from vgg_ddp.report.image_answers import Answer, write_own_images
from vgg_ddp.run import checkpoint
from vgg_ddp.run.console import say, table
from vgg_ddp.run.directory import RunDirectory, find_run
from vgg_ddp.training import parts

KINDS = (".jpg", ".jpeg", ".png")
MOST_LINES = 20  # of the table that is printed


@dataclass(frozen=True)
class Found:
    """An image file and its pixels [height, width, 3]; `name` is its path in the folder."""

    name: str
    pixels: NDArray[np.uint8]


def find(folder: Path) -> list[Path]:
    """Every JPEG and PNG file in `folder` and below it, in the order of their names.

    Raises:
        UserError: it is no folder, or has no such file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --images takes a folder of JPEG or PNG files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    if not files:
        raise UserError(f"{folder} has no {', '.join(KINDS)} file in it; --images takes a folder of JPEG or PNG files")
    return files


def read(files: list[Path], folder: Path, unreadable: list[str]) -> Iterator[Found]:
    """The files that can be decoded; what is wrong with the others is added to `unreadable`."""
    for path in files:
        name = str(path.relative_to(folder))
        try:
            yield Found(name, decode_image(path.read_bytes()))
        except Exception as error:
            unreadable.append(f"{name} cannot be decoded: {error}")


def seen(pixels: NDArray[np.uint8], data: DataConfig) -> NDArray[np.uint8]:
    """An image as the network sees it, [size, size, 3]: resized as in evaluation, or to the network's size, and cut from
    the centre.
    """
    shorter = data.resize or data.image_size
    place = Geometry(None, data.image_size, (shorter, shorter)).place
    box = place(Slice(0, 0, np.zeros(1, dtype=np.int64)), np.array([pixels.shape[:2]])).box[0]
    top, left, bottom, right = (round(edge) for edge in box)
    if (bottom - top, right - left) == (data.image_size, data.image_size):
        return pixels[top:bottom, left:right]
    return resample(pixels, box, data.image_size)


@torch.no_grad()
def answer(
    files: list[Path], folder: Path, config: Config, dataset: Dataset, weights: Path, device: torch.device
) -> tuple[list[Answer], list[str]]:
    """The network's probabilities for each image that can be read, and a line on each that cannot."""
    network = parts.build_network(config, len(dataset.classes), device).eval()
    parts.load_weights(network, checkpoint.read(weights), weights)
    preprocess = parts.build_preprocess(config, dataset, device)
    unreadable: list[str] = []
    answers: list[Answer] = []
    waiting: list[Found] = []

    def flush() -> None:
        views = [seen(found.pixels, config.data) for found in waiting]
        with precision.autocast(config.precision, device):
            logits = network(preprocess(torch.from_numpy(np.stack(views)).to(device))).float()
        for found, view, row in zip(waiting, views, logits.double().softmax(dim=1).cpu().numpy()):
            label = next((part for part in Path(found.name).parts[-2::-1] if part in dataset.classes), None)
            answers.append(Answer.of(found.name, label, row, found.pixels, view))
        waiting.clear()

    for found in read(files, folder, unreadable):
        waiting.append(found)
        if len(waiting) == min(config.evaluate.batch, 64):  # whole photographs wait in memory
            flush()
    if waiting:
        flush()
    if not answers:
        raise UserError(f"no image in {folder} can be decoded; the first: {unreadable[0]}")
    return answers, unreadable


def evaluate(config: Config, dataset: Dataset, run: RunDirectory, weights: Path, folder: Path, world: World) -> None:
    """Answer for every image in `folder`, write RUN/images, and print the answers.

    Raises:
        UserError: no image in the folder, a checkpoint that is damaged or of another network, or a full disk.
    """
    answers, unreadable = answer(find(folder), folder, config, dataset, weights, world.device)
    rows = [
        {
            "file": one.name,
            "label": one.label,
            "prediction": dataset.classes[one.order[0]],
            "probabilities": {dataset.classes[k]: float(one.probabilities[k]) for k in one.order},
        }
        for one in answers
    ]
    target = run.path / "images" / (folder.resolve().name or "root")
    with run.writing():
        run.write_json(target / "predictions.json", {"images": rows, "unreadable": unreadable})
    page = write_own_images(
        answers, unreadable, dataset.classes, config.network, dataset.name, folder, target / "index.html"
    )
    lines = [[one.name, dataset.classes[one.order[0]], f"{one.probabilities.max():.1%}"] for one in answers]
    table(f"{config.network} on {folder}", ["file", "answer", "confidence"], lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        say(f"and {len(lines) - MOST_LINES} more")
    for line in unreadable:
        say(f"left out: {line}")
    say(f"answers to {len(answers)} images: {page}")


def main(arguments: list[str]) -> int:
    """`RUN|CHECKPOINT FOLDER [key=value ...]`; returns the exit code."""

    def body(world: World) -> None:
        run, weights = find_run(Path(arguments[0]))
        config = load(run.config, arguments[2:])
        weights = weights or chosen_checkpoint(config, run)
        find(Path(arguments[1]))  # a mistake is told before any data set is prepared
        world.use_threads(config.threads)
        config, _ = precision.resolve(config, world.device)
        precision.set_arithmetic(config)
        dataset, _ = parts.open_dataset(config, world)
        evaluate(config, dataset, run, weights, Path(arguments[1]), world)

    return rank_process.run(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
