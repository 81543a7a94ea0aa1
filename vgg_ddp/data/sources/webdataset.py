"""WebDataset tars of others: files of one name before the first dot are one sample, an image and its class (.cls or .json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container, Folder, Tar
from vgg_ddp.data.sources.source import FileSource
from vgg_ddp.data.sources.splitting import must_be_several, only_used, split_in
from vgg_ddp.errors import UserError

CLASS_NAMES = ("classnames.txt", "classes.txt", "labels.txt")  # one a line, by number
FIELDS = ("cls", "label", "class")  # of a .json file


def find(container: Container) -> FileSource | None:
    """The samples of a tar, or of a folder of tars, each of the split that it or its folder is named after.

    Returns:
        None where there is no tar of samples.

    Raises:
        UserError: a damaged tar, or an image without a class.
    """
    if isinstance(container, Folder):
        tars = [name for name in container.names if name.endswith((".tar", ".tar.gz", ".tgz"))]
        shards = {name: Tar(container.folder / name) for name in tars}
    else:
        shards = {container.path.name: container} if isinstance(container, Tar) else {}
    images = {shard: _images(tar) for shard, tar in shards.items()}
    if not any(images.values()):
        return None
    texts: dict[str, tuple[str, str]] = {}  # split and class of each image
    for shard, tar in shards.items():
        classes = dict(tar.read([label for _, label in images[shard]]))
        for image, label in images[shard]:
            text = _text(label, classes[label])
            if text is None:
                raise UserError(f"{tar.path}: {label} does not say a class")
            texts[f"{shard}/{image}"] = split_in(shard), text
    values = {text for _, text in texts.values()}
    numbered = all(value.isdecimal() for value in values)
    names = _class_names(container) or (
        [str(i) for i in range(1 + max(map(int, values)))] if numbered else sorted(values)
    )
    number = {str(i) if numbered else name: i for i, name in enumerate(names)}
    unknown = sorted(values - number.keys())
    if unknown:
        raise UserError(f"{container.path}: class {unknown[0]!r} is not among the {len(names)} names of its classes")
    names, among_used, unused = only_used(names, {number[value] for value in values})
    must_be_several(names, container.path)

    def files() -> Iterator[tuple[str, bytes]]:
        for shard, tar in shards.items():
            for name, data in tar.read([image for image, _ in images[shard]]):
                yield f"{shard}/{name}", data

    return FileSource(
        stem(container),
        names,
        groups_of(names),
        {key: (split, among_used[number[text]]) for key, (split, text) in texts.items()},
        files,
        container.origin,
        str(container.path),
        (*container.remarks, *unused),
    )


def _images(tar: Tar) -> list[tuple[str, str]]:
    """The images of a tar, and the file that holds the class of each: all .cls, or .json if those say a class."""
    images = [name for name in tar.names if name.lower().endswith(SUFFIXES)]
    for kind in (".cls", ".json"):
        labels = {_sample(name): name for name in tar.names if name.endswith(kind)}
        found = [(name, labels[_sample(name)]) for name in images if _sample(name) in labels]
        if found and _text(kind, next(data for _, data in tar.read([found[0][1]]))) is not None:
            return found
    return []


def _sample(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.name.split(".")[0])


def _text(name: str, data: bytes) -> str | None:
    """The class in a .cls or .json file, a number or a name; None where it says none."""
    try:
        text = data.decode().strip()
        if name.endswith(".json"):
            fields = json.loads(text)
            text = str(next(fields[field] for field in FIELDS if field in fields)).strip()
    except (ValueError, StopIteration, TypeError):
        return None
    return text or None


def _class_names(container: Container) -> list[str]:
    found = [name for name in container.names if PurePosixPath(name).name in CLASS_NAMES]
    return next((data.decode().splitlines() for _, data in container.read(found[:1])), [])
