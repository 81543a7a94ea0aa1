"""Images in one folder beside a table of their classes, as Kaggle gives them: train/ID.png and trainLabels.csv."""

from __future__ import annotations

import csv
import io
from pathlib import PurePosixPath

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container
from vgg_ddp.data.sources.source import FileSource
from vgg_ddp.data.sources.splitting import must_be_several
from vgg_ddp.errors import UserError

TABLES = ("trainlabels.csv", "train_labels.csv", "labels.csv", "train.csv")


def find(container: Container) -> FileSource | None:
    """The labelled images in `container`; None where there is no table whose rows name images.

    A folder test/ beside them has no classes, and is left out.

    Raises:
        UserError: a table that cannot be read, names images that are not there, or gives an image two classes.
    """
    for name in container.names:
        table = PurePosixPath(name)
        if table.name.lower() not in TABLES:
            continue
        files = {}
        for image in container.names:
            path = PurePosixPath(image)
            if path.parent in (table.parent, table.parent / "train") and path.name.lower().endswith(SUFFIXES):
                files[path.name] = files[path.stem] = image
        rows = _rows(container, name)
        rows = rows[rows[:1] != [] and rows[0][0] not in files :]  # without a header
        labels: dict[str, str] = {}
        for image, label in rows:
            if image in files and labels.setdefault(files[image], label) != label:
                raise UserError(
                    f"{container.path}: {name} gives {image} the classes {labels[files[image]]} and {label}"
                )
        if labels:
            return _source(container, name, labels, sum(image not in files for image, _ in rows))
    return None


def _rows(container: Container, table: str) -> list[list[str]]:
    """Image and class of each row of the table."""
    ((_, data),) = container.read([table])
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{container.path}: {table} is not a table: {error}") from None
    return [row for row in rows if len(row) == 2]


def _source(container: Container, table: str, labels: dict[str, str], lost: int) -> FileSource:
    if lost:
        raise UserError(f"{container.path}: {table} names images that are not there (rows: {lost}); unpack them all")
    classes = sorted(set(labels.values()))
    must_be_several(classes, container.path)
    number = {name: i for i, name in enumerate(classes)}
    left = len(container.names) - len(labels) - 1
    remarks = [*container.remarks, *([f"files left out, because {table} gives them no class: {left}"] if left else [])]
    return FileSource(
        stem(container),
        classes,
        groups_of(classes),
        {name: ("train", number[label]) for name, label in labels.items()},
        lambda: container.read(sorted(labels)),
        container.origin,
        str(container.path),
        tuple(remarks),
    )
