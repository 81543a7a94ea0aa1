"""Data sets as earlier versions prepared them."""

from __future__ import annotations

from msgspec import json
from msgspec.structs import replace

from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.splits import CHECKSUMS


def without_checksums(dataset: Dataset) -> Dataset:
    """Remove the checksums of the samples and the hash of the record."""
    splits = {}
    for name, split in dataset.record.splits.items():
        (dataset.directory / f"{name}{CHECKSUMS}").unlink()
        splits[name] = replace(split, files=[file for file in split.files if not file.name.endswith(CHECKSUMS)])
    (dataset.directory / "dataset.json").write_bytes(json.encode(replace(dataset.record, splits=splits, sha256="")))
    return Dataset(dataset.directory)
