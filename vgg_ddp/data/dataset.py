"""A prepared dataset on disk: what dataset.json says of it, and its splits."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from vgg_ddp.data.other_classes import as_trained, labels_by_name
from vgg_ddp.data.record import DatasetRecord, FileRecord, read_record
from vgg_ddp.data.splits import CHECKSUMS, EncodedSplit, RawSplit, Split
from vgg_ddp.errors import UserError

QUICKLY_READ = 2 * 2**30  # bytes, of which the hashes take one or two seconds


class Dataset:
    """A prepared dataset opened for reading.

    Args:
        trained: the record of the dataset that a network was trained on, if this one is opened to evaluate that
            network. Classes, matched by name, and normalisation are then taken from that record.
        copy: the name of a copy of dataset.json in `directory`, where the images themselves are not.

    Raises:
        UserError: no dataset in the directory, a file of it missing or of the wrong size, or images of a class that the
            network does not know.
    """

    def __init__(self, directory: str | Path, trained: DatasetRecord | None = None, copy: str = "") -> None:
        self.directory = Path(directory)
        record = read_record(self.directory / (copy or "dataset.json"))
        if record is None:
            raise UserError(f"{directory} is not a prepared dataset: it has no dataset.json; run 'vgg-ddp prepare'")
        self.record, self._labels = record, np.arange(len(record.classes))
        if trained is not None and trained.classes != record.classes:
            self._labels = labels_by_name(record, trained.classes)
        if trained is not None:
            self.record = as_trained(record, trained, self._labels)
        self.has_images, self.as_trained = not copy, trained is not None
        for file in self._files() if self.has_images else ():
            stored = self.directory / file.name
            if not stored.is_file() or stored.stat().st_size != file.bytes:
                raise UserError(f"{stored} is missing or truncated; prepare the dataset again")
        self._splits: dict[str, Split] = {}

    @property
    def name(self) -> str:
        """What the dataset is called, e.g. "CIFAR-10"."""
        return self.record.name

    @property
    def classes(self) -> list[str]:
        """The names of the classes, by label."""
        return self.record.classes

    @cached_property
    def sha256(self) -> str:
        """One hash over the hashes of all files: the identity of the data."""
        splits = self.record.splits
        lines = [
            f"{f.name} {f.sha256}" for s in sorted(splits) for f in splits[s].files if not f.name.endswith(CHECKSUMS)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """The split called `name`: the same object each time, so that its decoded pixels can be cached by it.

        Raises:
            UserError: it cannot be opened; names a file of it that differs from its hash, if there is one.
        """
        if name not in self._splits:
            try:
                self._splits[name] = self._opened(name)
            except Exception as error:  # of zipfile, zlib or numpy: a flipped bit in an index or a header
                files = [file for file in self.record.splits[name].files if not file.name.endswith(".tar")]
                for file in files:
                    if file.bytes <= QUICKLY_READ:
                        file.check_hash(self.directory)
                large = [file.name for file in files if file.bytes > QUICKLY_READ]
                if large and isinstance(error, ValueError | TypeError | OverflowError | OSError | EOFError):
                    raise UserError(
                        f"{self.directory / large[0]} cannot be opened ({error}); see 'vgg-ddp verify', or prepare it again"
                    ) from None
                raise
        return self._splits[name]

    def _opened(self, name: str) -> Split:
        files, count = self.record.splits[name].files, self.record.splits[name].count
        shards = sorted(file.name for file in files if file.name.endswith(".tar"))
        raw = self.record.storage == "raw"
        large = sum(file.bytes for file in self._files()) > QUICKLY_READ
        split = RawSplit(self.directory, name, large) if raw else EncodedSplit(self.directory, name, shards)
        if len(split) != count or (isinstance(split, RawSplit) and len(split.images) != count):
            raise ValueError(f"the split {name} has {len(split)} samples where dataset.json says {count}")
        split.labels = self._labels[split.labels]
        return split

    def verify(self, at_most: int | None = None) -> int:
        """Check every file against its hash; the number of files checked.

        Args:
            at_most: bytes. In a larger set, images and shards are left out: images are checked as they are read
                (`EncodedSplit.encoded`, `RawSplit.pixels`).

        Raises:
            UserError: naming the first file that differs.
        """
        files = self._files()
        if at_most is not None and sum(file.bytes for file in files) > at_most:
            files = [file for file in files if not file.name.endswith((".tar", ".images.npy"))]
        for file in files:
            file.check_hash(self.directory)
        return len(files)

    def _files(self) -> list[FileRecord]:
        return [file for split in self.record.splits.values() for file in split.files]
