"""Images in Parquet files as Hugging Face's `datasets` writes them: a column of file contents and one of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container, Folder
from vgg_ddp.data.sources.source import FileSource
from vgg_ddp.data.sources.splitting import must_be_several, only_used, split_in
from vgg_ddp.errors import UserError

LABELS = ("label", "labels", "fine_label", "class")  # columns of classes, the one that is wanted first
AT_ONCE = 256  # rows in memory


def find(container: Container) -> FileSource | None:
    """The images of the .parquet files in `container`, each of the split in its name; None where there is none.

    Raises:
        UserError: pyarrow is not installed, or a file has no such columns.
    """
    names = [name for name in container.names if name.endswith(".parquet")]
    if not names or not isinstance(container, Folder):
        return None
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{container.path}: Parquet needs pyarrow; pip install 'vgg_ddp[parquet]'") from None
    keys: dict[str, tuple[str, Any]] = {}
    known: list[str] | None = None
    columns: dict[str, str] = {}  # of images, by file
    try:
        for name in names:
            with parquet.ParquetFile(container.folder / name) as file:
                columns[name], labels, known = _columns(file.schema_arrow, container.folder / name)
                values = file.read(columns=[labels]).column(0).to_pylist()
            keys |= {_key(name, i): (split_in(name), value) for i, value in enumerate(values)}
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{container.path}: {name} is not a whole Parquet file: {error}") from None
    values = {value for _, value in keys.values()}
    if None in values or -1 in values:
        raise UserError(f"{container.path} has images without a class; take their files away")
    order = range(len(known)) if known else sorted(values)
    number = {value: i for i, value in enumerate(order)}
    unknown = sorted(values - number.keys())
    if unknown:
        raise UserError(f"{container.path}: class {unknown[0]!r} is not among the {len(number)} names of its classes")
    classes, among_used, unused = only_used(known or [str(value) for value in order], {number[v] for v in values})
    must_be_several(classes, container.path)
    return FileSource(
        stem(container),
        classes,
        groups_of(classes),
        {key: (split, among_used[number[value]]) for key, (split, value) in keys.items()},
        lambda: _files(container.folder, columns),
        container.origin,
        str(container.path),
        (*container.remarks, *unused),
    )


def _columns(schema: Any, path: Path) -> tuple[str, str, list[str] | None]:
    """The column of images, that of classes, and the names of those if the file has them."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    from pyarrow.types import is_struct

    images = [f.name for f in schema if is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    named = [name for name in schema.names if (described.get(name) or {}).get("_type") == "ClassLabel"]
    labels = [name for name in LABELS if name in schema.names] or named
    if not images or not labels:
        raise UserError(f"{path} has the columns {', '.join(schema.names)}, and not one of images and one of classes")
    return images[0], labels[0], described[labels[0]]["names"] if labels[0] in named else None


def _key(name: str, row: int) -> str:
    return f"{name.removesuffix('.parquet')}/{row:08d}"


def _files(folder: Path, columns: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    from pyarrow import parquet

    for name, column in columns.items():
        row = 0
        with parquet.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(AT_ONCE, columns=[column]):
                for image in batch.column(0).to_pylist():
                    yield _key(name, row), (image or {}).get("bytes") or b""  # without them it is unreadable
                    row += 1
