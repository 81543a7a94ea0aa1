"""From a source to the files of a dataset: each image inspected, encoded where it is to be, and counted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vgg_ddp import cores
from vgg_ddp.data.inspection import Inspection, inspect
from vgg_ddp.data.moments import Moments
from vgg_ddp.data.record import DatasetRecord, FileRecord, SplitRecord
from vgg_ddp.data.shards import ShardWriter
from vgg_ddp.data.sources.source import FileSource, Image, Pixels, PixelSource, Source
from vgg_ddp.data.splits import CHECKSUMS, checksums
from vgg_ddp.data.storage import Difference, Storage
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import file_sha256

PREPARATION = "3"  # version of the conversion: datasets are prepared anew when it changes
LISTED = 50  # remarks on images that are printed; all of them are in dataset.json
UNEVEN = 1.5  # reported: a largest class with more than this many times the images of the smallest


@dataclass(frozen=True)
class Policy:
    """What to do with a source that is not as it should be.

    Attributes:
        unreadable: images that cannot be read: refuse the source, or leave them out.
        unusual: convert them to 8-bit RGB, or refuse the source.
        test_share: of each class to test on, where the source has neither a test nor a validation split.
        split_seed: draws that share.
    """

    unreadable: Literal["refuse", "drop"] = "refuse"
    unusual: Literal["convert", "refuse"] = "convert"
    test_share: float = 0.2
    split_seed: int = 0


class Conversion:
    """From a source to the files of a dataset in a folder: images go through inspection and encoding."""

    def __init__(
        self,
        source: Source,
        storage: Storage,
        policy: Policy,
        folder: Path,
        report: Callable[[str], None],
    ) -> None:
        self._source, self._storage, self._policy = source, storage, policy
        self._folder, self._report = folder, report
        self._moments, self._difference = Moments(), Difference()
        self._rewritten: list[str] = []  # keys of files that are not stored as they came

    def write(self) -> DatasetRecord:
        """Write every file but dataset.json, whose content is returned.

        Raises:
            UserError: the source is not what it should be.
        """
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
                f"{record.name}: the classes are uneven: {counts[fewest]} training images of {fewest}, {counts[most]} of "
                f"{most}; data.balance_classes=true or loss.class_weights=balanced evens them out"
            )
        return record

    def _write_pixels(self, pixels: Mapping[str, Pixels], notes: Sequence[str] = ()) -> DatasetRecord:
        """Raw storage: the pixels as they are."""
        splits = {}
        for name, split in pixels.items():
            files = [f"{name}.images.npy", f"{name}.labels.npy", f"{name}{CHECKSUMS}"]
            parts = [split.images[start : start + 1000] for start in range(0, len(split.images), 1000)]
            np.save(self._folder / files[0], split.images)
            np.save(self._folder / files[1], split.labels)
            np.save(self._folder / files[2], np.concatenate([checksums(part) for part in parts]))
            splits[name] = self._split_record(files, split.labels)
            if name == "train":
                for part in parts:
                    self._moments.add(part)
        shape = list(pixels["train"].images.shape[1:])
        return self._record("raw", splits, shape, notes)

    def _write_decoded(self, images: Iterable[Image]) -> DatasetRecord:
        """Raw storage of image files: each decoded, all of one size, sorted by key as they are in shards."""
        rows: dict[str, list[tuple[bytes, int, NDArray[np.uint8]]]] = {split: [] for split in self._source.counts}
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
        writers = {split: ShardWriter(self._folder, split) for split in self._source.counts}
        notes: list[str] = []
        splits, shapes = {}, []
        with contextlib.ExitStack() as stack:
            for writer in writers.values():
                stack.callback(writer.abandon)  # whatever happens, no shard stays open
            for image, inspection in self._inspected(images, notes):
                assert inspection.pixels is not None, "what cannot be read was left out"
                if self._storage.kind == "original" and inspection.file != image.data:
                    self._rewritten.append(image.key)
                height, width = inspection.pixels.shape[:2]
                writers[image.split].add(image.key, image.label, inspection.file, inspection.suffix, (height, width))
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
        refused: list[str] = []
        done, count = 0, sum(self._source.counts.values())
        for image, inspection in _in_order(self._inspect_and_encode, images):
            done += 1
            if done % 10_000 == 0:
                self._report(f"preparing {self._source.name}: {done} of {count} images")
            remarks = [f"{image.key} {remark}" for remark in inspection.unusual]
            if inspection.unreadable:
                remarks = [f"{image.key} cannot be read: {inspection.unreadable}"]
            notes += remarks
            if (self._policy.unreadable if inspection.unreadable else self._policy.unusual) == "refuse":
                refused += remarks
            if not inspection.unreadable:
                yield image, inspection
        if done != count:
            raise UserError(f"{self._source.path} gave {done} images where it lists {count}; it may be truncated")
        for note in notes[:LISTED]:
            self._report(note)
        if len(notes) > LISTED:
            self._report(f"... and {len(notes) - LISTED} more")
        if len(refused) == 1:
            raise UserError(
                f"{self._source.path}: image {refused[0]}; repair or remove it, or see data.unreadable and data.unusual"
            )
        if refused:
            raise UserError(
                f"{self._source.path}: {len(refused)} images are refused, the first: image {refused[0]}; repair or remove "
                "them, or see data.unreadable and data.unusual (prepare: --unreadable, --unusual)"
            )

    def _inspect_and_encode(self, image: Image) -> tuple[Image, Inspection]:
        inspection = inspect(image.key, image.data) if image.pixels is None else Inspection(image.pixels)
        if inspection.pixels is None:
            return image, inspection
        if image.split == "train":
            self._moments.add(inspection.pixels)
        # By what the file is, not what it is called: ImageNet's end in .JPEG, and some PNG files in .jpg.
        plain_jpeg = inspection.file.startswith(b"\xff\xd8")
        kept = self._storage.kind == "original" or (self._storage.kind == "jpeg" and plain_jpeg)
        if self._storage.kind == "raw" or (kept and image.pixels is None):
            return image, inspection
        data, suffix = self._storage.encode(inspection.pixels)
        self._difference.add(inspection.pixels, data)
        return image, dataclasses.replace(inspection, file=data, suffix=suffix)

    def _must_have_images(self, split: str, labels: Sequence[int]) -> None:
        """Raises a `UserError` if leaving images out left a split, or a class of files in the training split, empty."""
        counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(self._source.classes))
        every_class = split == "train" and isinstance(self._source, FileSource)
        if not counts.any() or (every_class and not counts.all()):
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
        for remark in source.remarks:
            self._report(f"{source.path}: {remark}")
        if self._rewritten:
            self._report(
                f"{source.name}: {len(self._rewritten)} files are stored as PNG, or without their EXIF data, since not every "
                f"decoder reads them alike, such as {self._rewritten[0]}"
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
            source={**source.origin, "remarks": list(source.remarks)},
            notes=list(notes),
        )


def _in_order(
    work: Callable[[Image], tuple[Image, Inspection]], images: Iterable[Image]
) -> Iterator[tuple[Image, Inspection]]:
    """`work` on each image, on all cores; the results in the images' order."""
    waiting: deque[Future[tuple[Image, Inspection]]] = deque()
    threads = cores.usable()
    with ThreadPoolExecutor(threads) as pool:
        for image in images:
            waiting.append(pool.submit(work, image))
            if len(waiting) > 2 * threads:  # an image may have hundreds of megabytes
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
