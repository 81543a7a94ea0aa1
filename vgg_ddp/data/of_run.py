"""The data set of a run: found where it was prepared, from any working directory, or what the run itself holds of it."""

from __future__ import annotations

import msgspec

from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json


def keep(run: RunDirectory, dataset: Dataset) -> None:
    """Write RUN/data.json: class names, normalisation, counts and hashes, which are needed where the images are gone."""
    run.write(run.data, msgspec.json.format(msgspec.json.encode(dataset.record), indent=2).decode())


def find(run: RunDirectory) -> Dataset | None:
    """The data set that a run was trained on; None where it is gone, or another has taken its place."""
    known = read_json(run.environment) or {}
    try:
        dataset = Dataset(known["data_directory"])
        return dataset if dataset.sha256 == known["data_sha256"] else None
    except (KeyError, UserError):
        return None


def is_of(run: RunDirectory, directory: str) -> bool:
    """Whether a run was trained on the data set in `directory`, as far as the run knows."""
    known = (read_json(run.environment) or {}).get("data_sha256")
    return known in (None, Dataset(directory).sha256)


def held(run: RunDirectory) -> Dataset | None:
    """The data set of a run without its images, from the run's own record; None in a run of an earlier version."""
    return Dataset(run.path, copy=run.data.name) if run.data.is_file() else None
