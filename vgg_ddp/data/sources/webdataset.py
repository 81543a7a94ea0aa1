"""WebDataset tars of others: files of one name before the first dot are one sample, an image and its class (.cls or .json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container, Folder, Tar, has_class_folders
from vgg_ddp.data.sources.source import FileSource
from vgg_ddp.data.sources.splitting import (
    must_be_one_revision,
    must_be_several,
    only_used,
    split_in,
    split_named,
    without_split,
)
from vgg_ddp.errors import UserError

CLASS_NAMES = ("classnames.txt", "classes.txt", "labels.txt")  # one a line, by number
FIELDS = ("cls", "label", "class")  # of a .json file


def find(container: Container) -> FileSource | None:
    """The samples of a tar, or of a folder of tars, each of the split that its folder or the tar's path names.

    Images without a class are left out, with a remark.

    Returns:
        None where there is no tar of samples.

    Raises:
        UserError: a damaged tar, a sample of two images, or a file of a class that says none.
    """
    shards, damaged = _shards(container)
    images = {shard: _images(tar) for shard, tar in shards.items()}
    if not any(images.values()):
        return None
    if damaged is not None:
        raise damaged
    must_be_one_revision(shards, container.path)
    splits: dict[str, str | None] = {}  # of each image
    texts: dict[str, tuple[str, str]] = {}  # split and class of each image
    for shard, tar in shards.items():
        classes = dict(tar.read([label for _, label in images[shard]]))
        named = _splits(shard, [image for image, _ in images[shard]])
        for image, label in images[shard]:
            text = _text(label, classes[label])
            if text is None:
                raise UserError(f"{tar.path}: {label} does not say a class")
            splits[f"{shard}/{image}"] = named[image]
            texts[f"{shard}/{image}"] = named[image] or "train", text
    values = {text for _, text in texts.values()}
    numbered = all(value.isdecimal() for value in values)
    if numbered:  # some write 007
        texts = {key: (split, str(int(text))) for key, (split, text) in texts.items()}
        values = {text for _, text in texts.values()}
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
        (*container.remarks, *_left_out(shards, images), *without_split(splits), *unused),
    )


def _shards(container: Container) -> tuple[dict[str, Tar], UserError | None]:
    """The tars by their names, and what is wrong with one that was passed over because it lies beside an image folder."""
    if isinstance(container, Tar):
        return {container.path.name: container}, None
    shards: dict[str, Tar] = {}
    damaged = None
    if not isinstance(container, Folder):
        return shards, damaged
    for name in container.names:
        if name.endswith((".tar", ".tar.gz", ".tgz")):
            try:
                shards[name] = Tar(container.folder / name)
            except UserError as error:
                if not has_class_folders(container):
                    raise
                damaged = error
    return shards, damaged


def _splits(shard: str, images: list[str]) -> dict[str, str | None]:
    """The split of each image of a tar: its folder's, if folders name several splits or one for all images; else the tar's.

    Otherwise a class called "train" would be taken for a split.
    """
    named = {
        image: next((split for part in image.split("/")[:-1] if (split := split_named(part)) is not None), None)
        for image in images
    }
    found = set(named.values())
    trusted = None not in found or len(found - {None}) > 1
    return {image: (split if trusted else None) or split_in(shard) for image, split in named.items()}


def _left_out(shards: dict[str, Tar], images: dict[str, list[tuple[str, str]]]) -> list[str]:
    """What to say of images in the tars that are not taken."""
    kept = {shard: {name for name, _ in found} for shard, found in images.items()}
    left = [f"{shard}/{name}" for shard, tar in shards.items() for name in _of_images(tar) if name not in kept[shard]]
    why = "because they have no class, or another image of their sample has"
    return [f"images left out, {why}: {len(left)}, such as {left[0]}"] if left else []


def _of_images(tar: Tar) -> list[str]:
    return [name for name in tar.names if name.lower().endswith(SUFFIXES)]


def _one_a_sample(tar: Tar, images: list[str]) -> list[str]:
    """The images of a tar, one per sample: of several, the one without an inner suffix (1.jpg beside 1.seg.png).

    Raises:
        UserError: a sample of several images, where none or more than one is without an inner suffix.
    """
    samples: dict[str, list[str]] = {}
    for name in images:
        samples.setdefault(_sample(name), []).append(name)
    for sample, names in samples.items():
        if len(names) > 1:
            samples[sample] = [name for name in names if PurePosixPath(name).name.count(".") == 1]
        if len(samples[sample]) != 1:
            raise UserError(
                f"{tar.path}: {names[0]} and {names[1]} are two images in one sample; take one of them away"
            )
    return [name for names in samples.values() for name in names]


def _images(tar: Tar) -> list[tuple[str, str]]:
    """The images of a tar, and the file that holds the class of each: all .cls, or .json if those say a class."""
    images = _of_images(tar)
    for kind in (".cls", ".json"):
        labels = {_sample(name): name for name in tar.names if name.endswith(kind)}
        found = [(name, labels[_sample(name)]) for name in images if _sample(name) in labels]
        if found and _text(kind, next(data for _, data in tar.read([found[0][1]]))) is not None:
            chosen = set(_one_a_sample(tar, [name for name, _ in found]))
            return [(name, label) for name, label in found if name in chosen]
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
    for name, data in container.read(found[:1]):
        try:
            return data.decode().splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{container.path}: {name} is not UTF-8; write it anew so") from None
    return []
