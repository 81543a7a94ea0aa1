"""Images in Parquet files as Hugging Face's `datasets` writes them: a column of file contents and one of classes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container, Folder, has_class_folders
from vgg_ddp.data.sources.source import SPLITS, FileSource
from vgg_ddp.data.sources.splitting import must_be_one_revision, must_be_several, only_used, split_in, without_split
from vgg_ddp.errors import UserError

LABELS = ("label", "labels", "fine_label", "class")  # columns of classes, the one that is wanted first
AT_ONCE = 256  # rows in memory


def find(container: Container) -> FileSource | None:
    """The images of the .parquet files in `container`, each of the split in its name.

    Returns:
        None where there is none, and where images in folders of classes are there and no file has a column of images.

    Raises:
        UserError: pyarrow is not installed, a file has no such columns, or the files are of several sets.
    """
    names = [name for name in container.names if name.lower().endswith(".parquet")]
    if not names or not isinstance(container, Folder):
        return None
    beside = has_class_folders(container)
    if importlib.util.find_spec("pyarrow") is None:
        if beside:
            return None
        raise UserError(f"{container.path}: Parquet needs pyarrow; pip install 'vgg_ddp[parquet]'")
    tables: dict[str, _Table] = {}
    refused = None
    for name in names:
        try:
            tables[name] = _table(container.folder / name)
        except _OfNoImages as error:
            if not beside:
                raise
            refused = error
    if not tables:
        return None
    if refused is not None:
        raise refused
    must_be_one_revision(tables, container.path)
    splits = {name: split_in(name) for name in tables}
    keys = {
        _key(name, i): (splits[name] or "train", value)
        for name, table in tables.items()
        for i, value in enumerate(table.classes)
    }
    values = {value for _, value in keys.values()}
    if len(kinds := {type(value).__name__ for value in values}) > 1:
        said = " in one file and ".join(sorted(kinds))
        raise UserError(f"{container.path}: classes are {said} in another; write them alike in all files")
    by_names = sorted(tables.values(), key=lambda table: -len(table.known))  # the longest list gives the classes' order
    known = dict.fromkeys(name for table in by_names for name in table.known)
    order = list(known or sorted(values))
    number = {value: i for i, value in enumerate(order)}
    unknown = sorted(values - number.keys())
    if unknown:
        raise UserError(f"{container.path}: class {unknown[0]!r} is not among the {len(number)} names of its classes")
    classes, among_used, unused = only_used([str(value) for value in order], {number[v] for v in values})
    must_be_several(classes, container.path)
    columns = {name: table.images for name, table in tables.items()}
    return FileSource(
        stem(container),
        classes,
        groups_of(classes),
        {key: (split, among_used[number[value]]) for key, (split, value) in keys.items()},
        lambda: _files(container.folder, columns),
        container.origin,
        str(container.path),
        (*container.remarks, *without_split(splits), *_in_several_folders(splits), *unused),
    )


def _in_several_folders(splits: dict[str, str | None]) -> list[str]:
    """What to say of splits whose files lie in several folders: parts of one set, or two forms of it with the same images."""
    remarks = []
    for split in SPLITS:
        folders = sorted({str(PurePosixPath(name).parent) for name, own in splits.items() if (own or "train") == split})
        if len(folders) > 1:
            where = f"{len(folders)} folders, such as {folders[0]} and {folders[1]}"
            remarks.append(
                f"the files of {split} lie in {where}, and are taken together; give one if each is a whole set"
            )
    return remarks


@dataclass(frozen=True)
class _Table:
    """What one file says of its images.

    Attributes:
        images: the column of images.
        classes: the class of each, as all files call it: by its name where the file names its classes.
        known: those names, by the file's own numbers.
    """

    images: str
    classes: list[Any]
    known: list[str]


class _OfNoImages(UserError):
    """A file that cannot be read as Parquet, or has no column of images or none of classes."""


def _table(path: Path) -> _Table:
    """The classes in a file.

    Raises:
        _OfNoImages: see there.
        UserError: see `_named`.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow)
            if columns is None:
                there = ", ".join(file.schema_arrow.names)
                raise _OfNoImages(f"{path} has the columns {there}, and not one of images and one of classes")
            images, labels, known = columns
            values = file.read(columns=[labels]).column(0).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _OfNoImages(f"{path} is not a whole Parquet file: {error}") from None
    return _Table(images, _named(values, known, path), known)


def _columns(schema: Any) -> tuple[str, str, list[str]] | None:
    """The column of images, that of classes, and the names of those if the file has them; None where a column is missing."""
    from pyarrow.types import is_struct

    described: Any = None
    with contextlib.suppress(ValueError):  # what is written otherwise is as if it were not there
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features"):
        described = described.get(key) if isinstance(described, dict) else None

    images = [f.name for f in schema if is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    described = described if isinstance(described, dict) else {}
    # A list of features is described by a list.
    features = {name: value for name, value in described.items() if isinstance(value, dict)}
    named = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = [name for name in LABELS if name in schema.names] or named
    if not images or not labels:
        return None
    names = features[labels[0]].get("names") if labels[0] in named else None
    return images[0], labels[0], [str(name) for name in names] if isinstance(names, list) else []


def _named(values: list[Any], names: list[str], path: Path) -> list[Any]:
    """The classes in a file as all files call them: by `names`, those of this file, where it has some.

    Raises:
        UserError: an image without a class or with several, or a number without a name.
    """
    used: set[Any] = set()
    for value in values:
        if value is None or value == -1 or value != value:  # the last of which is no number at all (NaN)
            raise UserError(f"{path} has images without a class; take their files away")
        if isinstance(value, list | dict):
            raise UserError(f"{path} has images with several classes, such as {value}; each must have one")
        used.add(value)
    if not names:
        return values
    name_of: dict[Any, str] = dict(enumerate(names))
    unknown = sorted(used - name_of.keys())
    if unknown:
        raise UserError(f"{path}: class {unknown[0]!r} is not among the {len(names)} names of its classes")
    return [name_of[value] for value in values]


def _key(name: str, row: int) -> str:
    return f"{name[: -len('.parquet')]}/{row:08d}"


def _files(folder: Path, columns: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    for name, column in columns.items():
        for row, image in enumerate(_rows(folder / name, column)):
            yield _key(name, row), (image or {}).get("bytes") or b""  # without them it is unreadable


def _rows(path: Path, column: str) -> Iterator[Any]:
    """A column's values.

    Raises:
        UserError: a damaged file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}") from None
