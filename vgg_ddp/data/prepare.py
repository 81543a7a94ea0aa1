"""Makes a dataset from a source: whole or absent, every file with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from vgg_ddp.config.schema import BUILT_IN_SOURCES, DataConfig
from vgg_ddp.data.dataset import Dataset, DatasetRecord, FileRecord, SplitRecord, decode_image, file_sha256
from vgg_ddp.data.download import ARCHIVES, fetch
from vgg_ddp.data.sources import EncodedImage, EncodedSource, PixelSource, digits, open_source
from vgg_ddp.errors import UserError

Report = Callable[[str], None]
SHARD_BYTES = 256 * 2**20
PIXELS_AT_ONCE = 2**20

# The names under which a source can be asked for, and the archives that hold it, best first.
ARCHIVE_NAMES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}


class Unavailable(UserError):
    """A named source that can be neither found nor downloaded here."""


def ensure(config: DataConfig, report: Report) -> tuple[Path, list[str]]:
    """The directory of the prepared dataset that `data.source` names, prepared first if it is not there.

    Returns:
        The directory, and the fallbacks that were taken (see `data.fallback`).

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    try:
        return _ensure(config.source, Path(config.directory), report), []
    except Unavailable as error:
        if config.fallback == "none":
            raise
        note = f"{config.source} could not be had, so {config.fallback} took its place ({error})"
        return _ensure(config.fallback, Path(config.directory), report), [note]


def _ensure(source: str, directory: Path, report: Report) -> Path:
    path = Path(source)
    if source not in BUILT_IN_SOURCES and (path / "dataset.json").is_file():
        return path
    target = directory / (source if source in BUILT_IN_SOURCES else _name_of(path))
    if (target / "dataset.json").is_file():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / f".{target.name}.lock")
        with lock:  # several processes may ask at once; the first prepares, the others find it
            if not (target / "dataset.json").is_file():
                prepare(source, target, report, downloads=directory / "downloads")
    except OSError as error:
        raise UserError(f"data.directory {directory} cannot be written: {error.strerror}; set data.directory") from None
    return target


def _name_of(path: Path) -> str:
    """A folder name for what is at `path` now: another one once it has changed."""
    if not path.exists():
        raise UserError(
            f"data.source: {path} does not exist; give {', '.join(BUILT_IN_SOURCES)}, an archive or an image folder"
        )
    walk = os.walk(path, followlinks=True)  # yields nothing for a file
    parts = [path, *(Path(folder, name) for folder, folders, files in walk for name in folders + files)]
    stats = [(str(part.resolve()), part.stat()) for part in sorted(parts) if part.exists()]
    text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return f"{path.resolve().name.split('.')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def locate(source: str, downloads: Path, report: Report) -> Path | None:
    """The file or folder behind a source: itself, or for a named one an archive found here or downloaded; None for digits."""
    if source == "digits":
        return None
    if source not in ARCHIVE_NAMES:
        return Path(source)
    archives = [ARCHIVES[name] for name in ARCHIVE_NAMES[source]]
    for archive in archives:
        for folder in (downloads, downloads.parent, Path("data"), Path()):
            found = folder / archive.name
            if found.is_file() and found.stat().st_size == archive.bytes and file_sha256(found) == archive.sha256:
                return found
    problems = []
    for archive in archives:
        try:
            return fetch(archive, downloads, report=report)
        except UserError as error:
            problems.append(str(error))
    raise Unavailable(problems[0])


def prepare(source: str, target: Path, report: Report, downloads: Path) -> Dataset:
    """Make the dataset `target` from `source`; it appears whole or not at all.

    Raises:
        UserError: `target` exists, the source is not what it should be, or there is no space.
    """
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or prepare into another directory with --out")
    path = locate(source, downloads, report)
    opened = digits() if path is None else open_source(path)
    aside = target.parent / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    try:
        aside.mkdir(parents=True)
        if isinstance(opened, PixelSource):
            record = _write_pixels(opened, aside)
        else:
            record = _write_encoded(opened, aside, report)
        (aside / "dataset.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
        os.rename(aside, target)
    except OSError as error:
        raise UserError(
            f"dataset {target} cannot be written: {error.strerror or error}; free space there or choose another place"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    counts = ", ".join(f"{split.count} {name}" for name, split in record.splits.items())
    report(f"prepared {record.name}: {counts} images of {len(record.classes)} classes in {target}")
    return Dataset(target)


def _write_pixels(source: PixelSource, folder: Path) -> DatasetRecord:
    """Raw storage: the pixels as they came."""
    splits, moments = {}, Moments()
    for name, pixels in source.splits.items():
        np.save(folder / f"{name}.images.npy", pixels.images)
        np.save(folder / f"{name}.labels.npy", pixels.labels)
        splits[name] = _split_record(
            folder, [f"{name}.images.npy", f"{name}.labels.npy"], pixels.labels, len(source.classes)
        )
        if name == "train":
            for start in range(0, len(pixels.images), 1000):
                moments.add(pixels.images[start : start + 1000])
    shape = list(source.splits["train"].images.shape[1:])
    return DatasetRecord(
        name=source.name,
        classes=source.classes,
        groups=source.groups,
        storage="raw",
        image_shape=shape,
        mean=moments.mean,
        std=moments.std,
        covariance=moments.covariance,
        splits=splits,
        source=source.origin,
    )


def _write_encoded(source: EncodedSource, folder: Path, report: Report) -> DatasetRecord:
    """Encoded storage: the original bytes in WebDataset tar shards, each image decoded once to see that it can be."""
    writers = {split: _ShardWriter(folder, split) for split in ("train", "test")}
    moments, done = Moments(), 0
    splits, shapes = {}, []
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.abandon)  # whatever happens, no shard stays open
        for image, shape in _checked(source.read(), moments, source.path):
            writers[image.split].add(image, shape)
            done += 1
            if done % 10_000 == 0:
                report(f"preparing {source.name}: {done} of {len(source.keys)} images")
        if done != len(source.keys):
            raise UserError(f"{source.path} gave {done} images where it lists {len(source.keys)}; it may be truncated")
        for split, writer in writers.items():
            files = writer.close()
            splits[split] = _split_record(folder, files, writer.labels, len(source.classes))
            shapes.append(writer.shapes)
    if source.ignored:
        report(f"{source.path}: {source.ignored} files that are not .jpg or .png under train/ or test/ were left out")
    sizes = np.unique(np.concatenate(shapes), axis=0)
    return DatasetRecord(
        name=source.name,
        classes=source.classes,
        groups=source.groups,
        storage="encoded",
        image_shape=[*sizes[0].tolist(), 3] if len(sizes) == 1 else None,
        mean=moments.mean,
        std=moments.std,
        covariance=moments.covariance,
        splits=splits,
        source=source.origin,
    )


def _split_record(folder: Path, files: list[str], labels: NDArray[np.int64], classes: int) -> SplitRecord:
    records = [FileRecord(f, (folder / f).stat().st_size, file_sha256(folder / f)) for f in files]
    return SplitRecord(len(labels), np.bincount(labels, minlength=classes).tolist(), records)


class Moments:
    """Mean, deviation and covariance of the channels over all pixels, in units of 0 to 255. Sums are whole numbers: exact."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = np.zeros(3, dtype=np.int64)
        self._products = np.zeros((3, 3), dtype=np.int64)
        self._lock = threading.Lock()

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Take in images of any leading shape with three channels last."""
        flat = pixels.reshape(-1, 3)
        total = flat.sum(axis=0, dtype=np.int64)
        products = np.zeros((3, 3), dtype=np.int64)
        for start in range(0, len(flat), PIXELS_AT_ONCE):  # whole numbers below 2^53 are exact in float64, and fast
            part = flat[start : start + PIXELS_AT_ONCE].astype(np.float64)
            products += (part.T @ part).astype(np.int64)
        with self._lock:
            self._count += len(flat)
            self._sum += total
            self._products += products

    @property
    def mean(self) -> list[float]:
        return (self._sum / self._count).tolist()

    @property
    def covariance(self) -> list[list[float]]:
        mean = self._sum / self._count
        return (self._products / self._count - np.outer(mean, mean)).tolist()

    @property
    def std(self) -> list[float]:
        return np.sqrt(np.maximum(np.diag(self.covariance), 1e-6)).tolist()  # a channel that never varies


def _checked(
    images: Iterable[EncodedImage], moments: Moments, path: Path
) -> Iterator[tuple[EncodedImage, tuple[int, int]]]:
    """The images with their heights and widths, in order, decoded on all cores; train images go into `moments`."""

    def check(image: EncodedImage) -> tuple[int, int]:
        try:
            pixels = decode_image(image.data)
        except Exception as error:
            raise UserError(f"{path}: image {image.key} cannot be read: {error}; repair or remove it") from None
        if image.split == "train":
            moments.add(pixels)
        return pixels.shape[0], pixels.shape[1]

    waiting: deque[tuple[EncodedImage, Future[tuple[int, int]]]] = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for image in images:
            waiting.append((image, pool.submit(check, image)))
            if len(waiting) > 256:  # bounds the memory
                first, shape = waiting.popleft()
                yield first, shape.result()
        for image, shape in waiting:
            yield image, shape.result()


class _ShardWriter:
    """Writes a split's images into tar shards of about SHARD_BYTES, and the index of where each lies, by key."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._files: list[str] = []
        self._tar: tarfile.TarFile | None = None
        self._rows: list[tuple[bytes, int, int, int, int, int, int]] = []

    def add(self, image: EncodedImage, shape: tuple[int, int]) -> None:
        if self._tar is None or self._tar.offset > SHARD_BYTES:
            self._open_next()
        assert self._tar is not None
        stem, suffix = f"{len(self._rows):08d}", image.key.rsplit(".", 1)[-1].lower()
        offset = self._add(f"{stem}.{suffix}", image.data)
        self._add(f"{stem}.cls", str(image.label).encode())
        self._rows.append((image.key.encode(), len(self._files) - 1, offset, len(image.data), image.label, *shape))

    def close(self) -> list[str]:
        """Write the index, sorted by key so that it does not depend on the source's order; all files' names."""
        if self._tar is not None:
            self._tar.close()
        self._rows.sort()
        key, shard, offset, size, label, height, width = zip(*self._rows)
        self.labels = np.array(label, dtype=np.int64)
        self.shapes = np.array([height, width], dtype=np.int64).T
        name = f"{self._split}.index.npz"
        np.savez(
            self._folder / name,
            key=np.array(key, dtype=bytes),
            shard=np.array(shard),
            offset=np.array(offset),
            size=np.array(size),
            label=self.labels,
            height=np.array(height),
            width=np.array(width),
        )
        return [*self._files, name]

    def abandon(self) -> None:
        """Let go of the shard as it is; does nothing after `close`."""
        if self._tar is not None and self._tar.fileobj is not None:
            with contextlib.suppress(OSError):
                self._tar.fileobj.close()

    def _open_next(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._files.append(f"{self._split}-{len(self._files):05d}.tar")
        self._tar = tarfile.open(self._folder / self._files[-1], "w", format=tarfile.USTAR_FORMAT)

    def _add(self, name: str, data: bytes) -> int:
        """Append a member; where its data begins."""
        assert self._tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        start = self._tar.offset
        self._tar.addfile(member, io.BytesIO(data))
        return start + tarfile.BLOCKSIZE
