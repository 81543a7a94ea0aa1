"""Makes a dataset from a source; it appears whole or not at all, and records the hash of every file."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vgg_ddp import cores
from vgg_ddp.data.cifar import Pixels
from vgg_ddp.data.dataset import Dataset, DatasetRecord, FileRecord, SplitRecord, file_sha256
from vgg_ddp.data.inspection import Inspection, inspect
from vgg_ddp.data.moments import Moments
from vgg_ddp.data.shards import ShardWriter
from vgg_ddp.data.sources import EncodedSource, Image, PixelSource, find_source
from vgg_ddp.data.storage import Difference, Storage
from vgg_ddp.errors import UserError

JPEG_START = b"\xff\xd8"
LISTED = 50  # remarks on images that are printed; all of them are in dataset.json
UNEVEN = 1.5  # times as many images in the largest class as in the smallest are reported


@dataclass(frozen=True)
class Policy:
    """What to do with images that are not as they should be.

    Attributes:
        unreadable: refuse the source, or leave such images out.
        unusual: convert them to 8-bit RGB wherever they are decoded, or refuse the source.
    """

    unreadable: Literal["refuse", "drop"] = "refuse"
    unusual: Literal["convert", "refuse"] = "convert"


def prepare(
    source: str,
    target: Path,
    report: Callable[[str], None],
    downloads: Path,
    storage: Storage = Storage(),  # noqa: B008 (frozen)
    policy: Policy = Policy(),
) -> Dataset:
    """Make the dataset `target` from `source`; it appears whole or not at all.

    Raises:
        UserError: `target` exists, the source is not what it should be, or there is no space.
    """
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or prepare into another directory with --out")
    opened = find_source(source, downloads, report)
    try:
        with _claimed(target.parent / f".{target.name}.partial", target) as aside:
            record = _Preparation(opened, storage, policy, aside, report).write()
            (aside / "dataset.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
            os.rename(aside, target)
    except OSError as error:
        raise UserError(
            f"dataset {target} cannot be written: {error.strerror or error}; free space there or choose another place"
        ) from None
    counts = ", ".join(f"{split.count} {name}" for name, split in record.splits.items())
    report(f"prepared {record.name}: {counts} images of {len(record.classes)} classes in {target}")
    return Dataset(target)


@contextlib.contextmanager
def _claimed(aside: Path, target: Path) -> Iterator[Path]:
    """An empty folder to write in, locked against other processes; removed at the end unless it was renamed.

    The lock is on the folder itself, so that it moves with the folder.
    """
    aside.mkdir(parents=True, exist_ok=True)  # it may be there: a killed process left it, or another one is at work
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {target}; wait for it, or choose another --out") from None
        try:
            if target.exists():  # the other one was quicker
                raise UserError(f"{target} exists already; another process prepared it just now")
            for left in aside.iterdir():
                left.unlink()
            yield aside
        finally:
            if aside.exists() and aside.stat().st_ino == os.fstat(descriptor).st_ino:  # else it is the dataset now
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(descriptor)


class _Preparation:
    """Makes one dataset: images go from the source through inspection and encoding into the folder."""

    def __init__(
        self,
        source: PixelSource | EncodedSource,
        storage: Storage,
        policy: Policy,
        folder: Path,
        report: Callable[[str], None],
    ) -> None:
        self._source, self._storage, self._policy = source, storage, policy
        self._folder, self._report = folder, report
        self._moments, self._difference = Moments(), Difference()

    def write(self) -> DatasetRecord:
        source, storage = self._source, self._storage
        if isinstance(source, PixelSource):
            raw = storage.kind in ("original", "raw")
            record = self._write_pixels(source.splits) if raw else self._write_files(source.read())
        else:
            record = self._write_decoded(source.read()) if storage.kind == "raw" else self._write_files(source.read())
        counts = dict(zip(record.classes, record.splits["train"].class_counts))
        fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[most] > UNEVEN * counts[fewest]:
            self._report(
                f"{record.name}: the classes are uneven: {counts[fewest]} training images of {fewest}, {counts[most]} of {most}"
            )
        return record

    def _write_pixels(self, pixels: Mapping[str, Pixels], notes: Sequence[str] = ()) -> DatasetRecord:
        """Raw storage: the pixels as they are."""
        splits = {}
        for name, split in pixels.items():
            files = [f"{name}.images.npy", f"{name}.labels.npy"]
            np.save(self._folder / files[0], split.images)
            np.save(self._folder / files[1], split.labels)
            splits[name] = self._split_record(files, split.labels)
            if name == "train":
                for start in range(0, len(split.images), 1000):
                    self._moments.add(split.images[start : start + 1000])
        shape = list(pixels["train"].images.shape[1:])
        return self._record("raw", splits, shape, notes)

    def _write_decoded(self, images: Iterable[Image]) -> DatasetRecord:
        """Raw storage of image files: each decoded, all of one size, sorted by key as they are in shards."""
        rows: dict[str, list[tuple[bytes, int, NDArray[np.uint8]]]] = {"train": [], "test": []}
        notes: list[str] = []
        shape: tuple[int, ...] | None = None
        for image, inspection in self._inspected(images, notes):
            pixels = inspection.pixels
            assert pixels is not None, "what cannot be read was left out"
            shape = shape or pixels.shape
            if pixels.shape != shape:
                sizes = f"{shape[1]} x {shape[0]} and {pixels.shape[1]} x {pixels.shape[0]}"
                raise UserError(
                    f"--storage raw needs images of one size, and {self._source.path} has {sizes}; leave it out"
                )
            rows[image.split].append((image.key.encode(), image.label, pixels))
        splits = {}
        for name, samples in rows.items():
            self._must_have_images(name, [label for _, label, _ in samples])
            samples.sort(key=lambda row: row[0])
            labels = np.array([label for _, label, _ in samples], dtype=np.int64)
            splits[name] = Pixels(np.stack([pixels for _, _, pixels in samples]), labels)
        return self._write_pixels(splits, notes)

    def _write_files(self, images: Iterable[Image]) -> DatasetRecord:
        """Encoded storage: image files in WebDataset tar shards, each decoded once to see that it can be."""
        writers = {split: ShardWriter(self._folder, split) for split in ("train", "test")}
        notes: list[str] = []
        splits, shapes = {}, []
        with contextlib.ExitStack() as stack:
            for writer in writers.values():
                stack.callback(writer.abandon)  # whatever happens, no shard stays open
            for image, inspection in self._inspected(images, notes):
                assert inspection.pixels is not None, "what cannot be read was left out"
                height, width = inspection.pixels.shape[:2]
                writers[image.split].add(image.key, image.label, image.data, image.suffix, (height, width))
            for split, writer in writers.items():
                self._must_have_images(split, writer.classes)
                files = writer.close()
                splits[split] = self._split_record(files, writer.labels)
                shapes.append(writer.shapes)
        sizes = np.unique(np.concatenate(shapes), axis=0)
        return self._record("encoded", splits, [*sizes[0].tolist(), 3] if len(sizes) == 1 else None, notes)

    def _inspected(self, images: Iterable[Image], notes: list[str]) -> Iterator[tuple[Image, Inspection]]:
        """The images that are to be stored, in order, encoded if need be, on all cores; what is wrong goes into `notes`.

        Raises:
            UserError: images that the policy refuses, once all were looked at.
        """
        refused, done = 0, 0
        for image, inspection in _in_order(self._inspect_and_encode, images):
            done += 1
            if done % 10_000 == 0:
                self._report(f"preparing {self._source.name}: {done} of {self._source.count} images")
            if inspection.unreadable:
                notes.append(f"{image.key} cannot be read: {inspection.unreadable}")
                refused += self._policy.unreadable == "refuse"
                continue
            for remark in inspection.unusual:
                notes.append(f"{image.key} {remark}")
                refused += self._policy.unusual == "refuse"
            yield image, inspection
        if done != self._source.count:
            raise UserError(
                f"{self._source.path} gave {done} images where it lists {self._source.count}; it may be truncated"
            )
        for note in notes[:LISTED]:
            self._report(note)
        if len(notes) > LISTED:
            self._report(f"... and {len(notes) - LISTED} more")
        if refused == 1:
            note = next(n for n in notes if " cannot be read: " in n or self._policy.unusual == "refuse")
            raise UserError(f"{self._source.path}: image {note}; repair or remove it")
        if refused:
            raise UserError(
                f"{self._source.path}: {refused} images are refused, the first: image {notes[0]}; repair or remove them, or "
                "see --unreadable and --unusual"
            )

    def _inspect_and_encode(self, image: Image) -> tuple[Image, Inspection]:
        if image.pixels is None:
            inspection = inspect(image.key, image.data)
        else:
            inspection = Inspection(image.pixels)
        if inspection.pixels is None:
            return image, inspection
        if image.split == "train":
            self._moments.add(inspection.pixels)
        kept = image.pixels is None and (
            self._storage.kind == "original" or (self._storage.kind == "jpeg" and image.data.startswith(JPEG_START))
        )
        if kept or self._storage.kind == "raw":
            return image, inspection
        data, suffix = self._storage.encode(inspection.pixels)
        self._difference.add(inspection.pixels, data)
        return dataclasses.replace(image, data=data, new_suffix=suffix), inspection

    def _must_have_images(self, split: str, labels: Sequence[int]) -> None:
        """Raises a `UserError` if leaving images out left a split, or a class of the training split, empty."""
        counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(self._source.classes))
        if not counts.any() or (split == "train" and not counts.all()):
            empty = self._source.classes[int(counts.argmin())]
            raise UserError(
                f"{self._source.path}: no image of {split}/{empty} can be read; repair them or remove the class"
            )

    def _split_record(self, files: list[str], labels: NDArray[np.int64]) -> SplitRecord:
        paths = [(name, self._folder / name) for name in files]
        records = [FileRecord(name, path.stat().st_size, file_sha256(path)) for name, path in paths]
        return SplitRecord(len(labels), np.bincount(labels, minlength=len(self._source.classes)).tolist(), records)

    def _record(
        self,
        storage: Literal["raw", "encoded"],
        splits: dict[str, SplitRecord],
        shape: list[int] | None,
        notes: Sequence[str],
    ) -> DatasetRecord:
        source, encoding = self._source, None
        if self._difference.images:
            settings = {"quality": self._storage.quality, "chroma": self._storage.chroma}
            encoding = {
                "format": self._storage.kind,
                **(settings if self._storage.kind == "jpeg" else {}),
                **self._difference.describe(),
            }
            apart = (
                f"{encoding['mean_difference']:.2f} levels of 255 in the mean, {encoding['largest_difference']} at most"
            )
            self._report(
                f"{source.name}: {self._difference.images} images encoded as {self._storage.kind}; "
                f"pixels differ from the source by {apart}"
            )
        if isinstance(source, EncodedSource) and source.ignored:
            self._report(
                f"{source.path}: {source.ignored} files that are not .jpg or .png under train/ or test/ were left out"
            )
        return DatasetRecord(
            name=source.name,
            classes=source.classes,
            groups=source.groups,
            storage=storage,
            encoding=encoding,
            image_shape=shape,
            mean=self._moments.mean,
            std=self._moments.std,
            covariance=self._moments.covariance,
            splits=splits,
            source=source.origin,
            notes=list(notes),
        )


def _in_order(
    work: Callable[[Image], tuple[Image, Inspection]], images: Iterable[Image]
) -> Iterator[tuple[Image, Inspection]]:
    """`work` on each image, on all cores; the results in the images' order."""
    waiting: deque[Future[tuple[Image, Inspection]]] = deque()
    with ThreadPoolExecutor(cores.usable()) as pool:
        for image in images:
            waiting.append(pool.submit(work, image))
            if len(waiting) > 256:  # bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
