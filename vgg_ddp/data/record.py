"""dataset.json: what a prepared dataset says of itself."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from vgg_ddp.errors import UserError
from vgg_ddp.run.files import file_sha256

FORMAT_VERSION = 2


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a dataset: its name in the dataset's directory, size and hash."""

    name: str
    bytes: int
    sha256: str

    def check_hash(self, directory: Path) -> None:
        """Raise a `UserError` where the file in `directory` has another hash."""
        if file_sha256(directory / self.name) != self.sha256:
            raise UserError(f"{directory / self.name} is not what was prepared (sha256 differs); prepare it again")


class SplitRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A split: its images, in all and of each class, and its files."""

    count: int
    class_counts: list[int]
    files: list[FileRecord]


class DatasetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """dataset.json. `mean`, `std` and `covariance` are of the train split's channels, in units of 0 to 255."""

    format_version: int = FORMAT_VERSION
    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    storage: Literal["raw", "encoded"]
    encoding: dict[str, Any] | None  # of images that were encoded here, and how far that is from their source
    image_shape: list[int] | None  # height, width, channels; None where images differ in size
    mean: list[float]
    std: list[float]
    covariance: list[list[float]]
    splits: dict[str, SplitRecord]
    source: dict[str, Any]
    notes: list[str]  # on images that are unusual, or were left out
    sha256: str = ""  # of the record itself without this; empty in data sets of earlier versions

    def __post_init__(self) -> None:
        """Raises a `ValueError`, which msgspec turns into its own error, for values that no data set has."""
        files = [file for split in self.splits.values() for file in split.files]
        wrong = next((file.name for file in files if re.fullmatch(r"[\w.-]+", file.name) is None), None)
        if wrong is not None or any(file.bytes < 0 for file in files):
            raise ValueError(f"it names a file {wrong!r}")
        for name in ("train", "test"):
            if name not in self.splits:
                raise ValueError(f"it has no split {name!r}")
        for name, split in self.splits.items():
            if len(split.class_counts) != len(self.classes) or sum(split.class_counts) != split.count:
                raise ValueError(f"the counts of {name} are not those of {len(self.classes)} classes")
        lengths = [len(self.mean), len(self.std), len(self.covariance), *(len(row) for row in self.covariance)]
        if lengths != [3] * 6 or min(self.std) < 0:
            raise ValueError("mean, std and covariance are not of three channels")


def own_hash(record: DatasetRecord) -> str:
    """The SHA-256 of everything that a record says but this hash."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(record, sha256=""))).hexdigest()


def encoded(record: DatasetRecord) -> bytes:
    """dataset.json, with the record's own hash."""
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(record, sha256=own_hash(record))), indent=2)


def read_record(path: Path) -> DatasetRecord | None:
    """What a dataset.json says; None where there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=DatasetRecord)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the dataset again") from None
    if record.format_version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {record.format_version}, this version reads {FORMAT_VERSION}; prepare it again"
        )
    if record.sha256 and record.sha256 != own_hash(record):
        raise UserError(f"{path} is not what was prepared (its own sha256 differs); prepare the dataset again")
    return record
