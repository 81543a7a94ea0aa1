"""Images per second of each loader and storage, beside a plain DataLoader over torchvision.

    python -m benchmarks.loaders --data SOURCE [--photos 2000] [--rounds 3] [--json FILE]

SOURCE is prepared as raw pixels and as the files it has, and loaded with a reflect-padded random crop and a flip. The
photos are made for the purpose: JPEG files of 300 to 600 pixels, loaded with a random resized crop to 224 and a flip. A
loader that is not available here, such as DALI where it is not installed, is left out with a message.
`--memory-batches 10000` loads that many batches with each loader instead, and shows that memory does not grow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import reference, wait_for
from vgg_ddp import loaders
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.decoding import decode_image
from vgg_ddp.data.order import Order, Slice
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import EncodedSplit, Split
from vgg_ddp.data.storage import Storage
from vgg_ddp.distributed.memory import used_bytes
from vgg_ddp.distributed.world import World, device_of
from vgg_ddp.errors import UserError

EARLY = 10  # the first of so many parts of the batches, after which memory is measured too
CROP_AND_FLIP = AugmentConfig(crop_padding=4, flip=True)
RESIZED_CROP_AND_FLIP = AugmentConfig(random_resized_crop=[0.08, 1.0], flip=True)


class Ours:
    """One of our loaders on a split, as an endless stream of batches."""

    def __init__(
        self, name: str, split: Split, augmentation: AugmentConfig, size: int, options: argparse.Namespace
    ) -> None:
        world = World(0, 1, 0, 1, device_of(0))
        data = DataConfig(image_size=size, decode_threads=options.threads, workers=options.threads, prefetch=2)
        self._order = Order(0, np.arange(len(split)), options.batch)
        self._epochs = count()
        self._loader = loaders.build(name, split, training_geometry(data, augmentation, 0), data, world, options.batch)

    def run(self, seconds: float) -> tuple[int, float]:
        """Load one batch or more, for at least `seconds`; the number of images, and the seconds that they took."""
        start, images = time.perf_counter(), 0
        for batch in self._loader.stream(self._until(start + seconds)):
            images += len(batch)
        wait_for(device_of(0))
        return images, time.perf_counter() - start

    def batches(self, number: int) -> Iterator[loaders.Batch]:
        """The next `number` batches."""
        slices = (chosen for epoch in self._epochs for chosen in self._order.slices(epoch))
        return self._loader.stream(chosen for chosen, _ in zip(slices, range(number)))

    def _until(self, end: float) -> Iterator[Slice]:
        for epoch in self._epochs:
            for chosen in self._order.slices(epoch):
                yield chosen
                if time.perf_counter() > end:
                    return


class Files(Dataset[tuple[Tensor, int]]):
    """The data set of a plain torchvision script: one image file at a time, by Pillow and torchvision's transforms."""

    def __init__(self, split: EncodedSplit, transform: Callable[[Image.Image], Tensor]) -> None:
        self._split, self._transform = split, transform

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(decode_image(self._split.encoded(index).tobytes()))
        return self._transform(image), int(self._split.labels[index])


class Torchvision:
    """A DataLoader over torchvision with a worker for each core, and pinned memory as its documentation recommends."""

    def __init__(self, split: EncodedSplit, transforms: list[Any], options: argparse.Namespace) -> None:
        transform = v2.Compose([*transforms, v2.RandomHorizontalFlip(), v2.PILToTensor()])
        self._loader = DataLoader(
            Files(split, transform),
            batch_size=options.batch,
            shuffle=True,
            drop_last=True,
            num_workers=options.threads,
            persistent_workers=options.threads > 0,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",
        )
        self._batches: Iterator[Any] = iter(())

    def run(self, seconds: float) -> tuple[int, float]:
        """Load one batch or more, for at least `seconds`; the number of images, and the seconds that they took."""
        start, images = time.perf_counter(), 0
        while not images or time.perf_counter() < start + seconds:
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self._loader)
                continue
            images += len(batch[1])
        return images, time.perf_counter() - start


def make_photos(folder: Path, number: int) -> Path:
    """JPEG files of 300 to 600 pixels, as hard to decode as photographs: soft patches with grain, quality 90."""
    generator = np.random.default_rng(0)
    for i in range(number + 20):
        split = "train" if i < number else "test"
        place = folder / split / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(300, 601, 2)
        patches = generator.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = generator.integers(-10, 11, (height, width, 1), dtype=np.int16)
        Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(place / f"{i:05d}.jpg", quality=90)
    return folder


def prepared_sides(options: argparse.Namespace, place: Path) -> dict[str, tuple[dict[str, Any], Callable[[], Any]]]:
    """What is measured, by name: the keys of its row, and how to build it.

    Raises:
        UserError: the data set has fewer images than a batch.
    """
    silent: Callable[[str], None] = lambda line: None  # noqa: E731
    made = place / "made"
    raw = prepare(options.data, made / "raw", silent, made, Storage("raw")).split("train")
    files = prepare(options.data, made / "files", silent, made).split("train")
    fewest = min(len(raw), len(files))
    if fewest < options.batch:
        raise UserError(
            f"--data {options.data}: {fewest} training images are fewer than one batch of {options.batch}; set --batch to "
            "that or less"
        )
    sides: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {}
    settings = {"batch": options.batch, "threads": options.threads}

    def add(name: str, split: Split, storage: str, augmentation: AugmentConfig, size: int) -> None:
        about = {"loader": name, "storage": storage, "size": size, **settings}
        sides[f"{name} {storage}"] = (about, lambda: Ours(name, split, augmentation, size, options))

    def add_torchvision(split: EncodedSplit, storage: str, transform: Any, size: int) -> None:
        about = {"loader": "torchvision", "storage": storage, "size": size, **settings}
        sides[f"torchvision {storage}"] = (about, lambda: Torchvision(split, [transform], options))

    assert raw.uniform_shape is not None
    size = min(raw.uniform_shape)
    for name in ("synthetic", "resident", "dali", "torch"):
        add(name, raw, "raw", CROP_AND_FLIP, size)
    if isinstance(files, EncodedSplit):
        for name in ("resident", "dali", "torch"):
            add(name, files, "files", CROP_AND_FLIP, size)
        add_torchvision(files, "files", v2.RandomCrop(size, padding=4, padding_mode="reflect"), size)
    if options.photos:
        photos = prepare(str(make_photos(place / "photos", options.photos)), made / "photos", silent, made).split(
            "train"
        )
        assert isinstance(photos, EncodedSplit)
        for name in ("dali", "torch"):
            add(name, photos, "photos", RESIZED_CROP_AND_FLIP, 224)
        add_torchvision(photos, "photos", v2.RandomResizedCrop(224, antialias=True), 224)
    return {name: side for name, side in sides.items() if not options.only or name in options.only}


def built(name: str, build: Callable[[], Any]) -> Any:
    """The side to measure; None, with a message, where it is not available here."""
    try:
        return build()
    except UserError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def measure_speed(options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """A row for each side: images per second, and the seconds from nothing to its first batch."""
    rows, running = {}, {}
    for name, (about, build) in prepared_sides(options, place).items():
        start = time.perf_counter()
        side = built(name, build)
        if side is None:
            continue
        running[name] = side
        if isinstance(side, Ours):
            next(iter(batches := side.batches(1)))
            rows[name] = {**about, "first_batch_seconds": time.perf_counter() - start}
            list(batches)
        else:
            rows[name] = {**about, "first_batch_seconds": None}

    def rate(name: str) -> float:
        images, seconds = running[name].run(options.seconds)
        return float(images / seconds)

    turns: dict[str, Callable[[], float]] = {name: partial(rate, name) for name in running}
    turns[rounds.REFERENCE] = reference(device_of(0))
    rates = rounds.in_turns(turns, options.rounds)
    speed = rates[rounds.REFERENCE]
    return [{"name": name, **rows[name], **rounds.summary(rates[name], reference=speed)} for name in rows]


def measure_memory(options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """A row for each loader: the memory in use after a tenth of the batches, and after all."""
    rows = []
    for name, (about, build) in prepared_sides(options, place).items():
        loader = built(name, build)
        if not isinstance(loader, Ours):
            continue
        early = 0
        for number, _ in enumerate(loader.batches(options.memory_batches), start=1):
            if number == options.memory_batches // EARLY:
                early = used_bytes(device_of(0))
        late = used_bytes(device_of(0))
        rows.append(
            {"name": name, **about, "batches": options.memory_batches, "early_bytes": early, "late_bytes": late}
        )
    return rows


def show(rows: list[dict[str, Any]], threads: int) -> None:
    """Print a line for each side."""
    if all("early_bytes" in row for row in rows):
        for row in rows:
            print(f"{row['name']:<20} {row['early_bytes'] / 1e6:8.0f} MB, then {row['late_bytes'] / 1e6:8.0f} MB")
        return
    print(f"{'':<20} {'images/s':>10} {'a core':>9} {'least to most':>21} {'first batch':>12}")
    for row in rows:
        first = "" if row["first_batch_seconds"] is None else f"{row['first_batch_seconds']:10.2f} s"
        per_core = row["images_per_second"] / threads
        span = f"{row['least']:.0f} to {row['most']:.0f}"
        print(f"{row['name']:<20} {row['images_per_second']:10.0f} {per_core:9.0f} {span:>21} {first:>12}")


def main() -> None:
    """Measure, print and keep the rows."""
    parser = command.parser("loaders", __doc__)
    parser.add_argument("--data", required=True, help="what vgg-ddp prepare takes, of images of one size")
    parser.add_argument("--photos", type=int, default=2000, help="large JPEG files to make (default: 2000; 0: none)")
    parser.add_argument("--batch", type=command.count, default=256, help="images in a batch (default: 256)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default: 2)")
    parser.add_argument("--only", nargs="*", help="only these, e.g. 'dali files' 'torchvision files'")
    parser.add_argument("--memory-batches", type=command.count, help="load this many batches and measure the memory")
    options = parser.parse_args()
    if 0 < options.photos < options.batch:
        raise UserError(
            f"--photos {options.photos} are fewer than one batch of {options.batch}; set --batch to that or less"
        )
    if options.memory_batches is not None and options.memory_batches < EARLY:
        raise UserError(f"--memory-batches {options.memory_batches}: give {EARLY} or more, of which a tenth come first")
    torch.set_num_threads(1 if not torch.cuda.is_available() else options.threads)  # leave the cores to the loaders
    with tempfile.TemporaryDirectory(prefix="vgg_ddp-loaders-") as place:
        rows = (measure_memory if options.memory_batches else measure_speed)(options, Path(place))
    if not rows:
        raise UserError("nothing could be measured" + (f", of {', '.join(options.only)}" if options.only else ""))
    show(rows, options.threads)
    command.keep(options, rows, "images_per_second", "images per second, all cores", log=True)


if __name__ == "__main__":
    command.run(main)
