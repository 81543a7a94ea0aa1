"""Image folders: SPLIT/CLASS/IMAGE, or CLASS/IMAGE without splits, at the top or in a folder that wraps them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.cifar import GROUPS_CIFAR10
from vgg_ddp.data.sources.containers import Container
from vgg_ddp.data.sources.source import FileSource
from vgg_ddp.data.sources.splitting import RARE_NAMES, must_be_several, split_named
from vgg_ddp.errors import UserError

SHAPE = "an image folder is train/CLASS/* and test/CLASS/* (or val/), or CLASS/* alone"


def find(container: Container) -> FileSource:
    """The set of classes in `container`.

    Raises:
        UserError: there is none, there are several, or a class of it has no image.
    """
    root, splits = _root(container)
    inside = [name.removeprefix(root) for name in container.names if name.startswith(root)]
    folders = [name.removeprefix(root) for name in container.folders if name.startswith(root)]
    keys: dict[str, tuple[str, str]] = {}  # split and class of each image
    others: list[tuple[str, str]] = []  # split and class of files that are no images
    for name in inside:
        place = _place(name, splits)
        if place is not None and name.lower().endswith(SUFFIXES):
            keys[name] = place
        elif place is not None:
            others.append(place)
    used = set(keys.values())
    for split, label in others:
        if (split, label) not in used:
            kinds = sorted({PurePosixPath(name).suffix for name in inside if _place(name, splits) == (split, label)})
            raise UserError(
                f"{container.path}: class {label!r} in {split} has no image that is read, but files with "
                f"{', '.join(kind or 'no suffix' for kind in kinds)}; convert them, or take the folder away"
            )
    classes = sorted({label for split, label in used if split == "train"})
    for split, label in sorted(used):
        if label not in classes:
            raise UserError(
                f"{container.path}: class {label!r} is only in {split}; every class needs training images in train/{label}/"
            )
    must_be_several(classes, container.path)
    remarks = [*container.remarks]
    class_folders = [folder for folder in sorted(folders) if folder.count("/") == (1 if splits else 0)]
    empty = [folder for folder in class_folders if (place := _place(f"{folder}/", splits)) and place not in used]
    remarks += [f"the class folder {folder} is empty" for folder in empty]
    if left := len(container.names) - len(keys):
        remarks.append(f"files left out, because they are not images in a class folder: {left}")
    number = {name: i for i, name in enumerate(classes)}
    return FileSource(
        stem(container),
        classes,
        groups_of(classes),
        {key: (split, number[label]) for key, (split, label) in keys.items()},
        lambda: ((name.removeprefix(root), data) for name, data in container.read([root + key for key in keys])),
        container.origin,
        str(container.path),
        tuple(remarks),
    )


def stem(container: Container) -> str:
    """What to call a set that lies in `container`."""
    name = container.path.resolve().name
    for suffix in (".xz", ".gz", ".bz2", ".tgz", ".tar", ".zip", ".npz", ".parquet"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def groups_of(classes: list[str]) -> dict[str, list[str]]:
    """CIFAR-10's groups if the classes are CIFAR-10's; else none."""
    return GROUPS_CIFAR10 if sorted(c for g in GROUPS_CIFAR10.values() for c in g) == sorted(classes) else {}


def _place(name: str, splits: dict[str, str]) -> tuple[str, str] | None:
    """Split and class of a file, by the folders that it lies in; None outside of them. `splits`: by their folders' names."""
    first, *rest = name.split("/")
    if not splits:
        return ("train", first) if rest else None
    return (splits[first], rest[0]) if first in splits and len(rest) > 1 else None


def _root(container: Container) -> tuple[str, dict[str, str]]:
    """The folder that the set lies in, with a slash, or ""; and the splits by the names of their folders."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    images = [name for name in container.names if name.lower().endswith(SUFFIXES)]
    for image in images:
        parts = image.split("/")
        for depth, part in enumerate(parts[:-2]):
            split = split_named(part)
            if split is not None:
                found["".join(f"{outer}/" for outer in parts[:depth])][part] = split
                if split == "train":  # another one may be called so by chance, as dev/ that wraps all
                    break
    whole = {root: splits for root, splits in found.items() if "train" in splits.values()}
    if whole:
        depth = min(root.count("/") for root in whole)
        roots = sorted(root for root in whole if root.count("/") == depth)
        if len(roots) > 1:
            raise UserError(f"{container.path} holds several sets: {', '.join(roots)}; give one of them")
        splits = whole[roots[0]]
        usual = {split for name, split in splits.items() if name.lower() not in RARE_NAMES}
        splits = {n: split for n, split in splits.items() if n.lower() not in RARE_NAMES or split not in usual}
        for split in set(splits.values()):
            twice = sorted(name for name, value in splits.items() if value == split)
            if len(twice) > 1:
                raise UserError(f"{container.path} has {' and '.join(twice)}, both of them {split}; take one away")
        return roots[0], splits
    if found:
        raise UserError(f"{container.path} has no images in train/CLASS/*; {SHAPE}")
    root = ""
    while True:
        inner = {image.removeprefix(root).split("/")[0] for image in images if image.removeprefix(root).count("/")}
        deeper = [image for image in images if image.removeprefix(root).count("/") > 1]
        if len(inner) != 1 or len(deeper) != len(images):
            break
        root += f"{inner.pop()}/"
    if not inner or all(split_named(name) for name in inner):
        raise UserError(f"{container.path} has no images in train/CLASS/* or CLASS/*; {SHAPE}")
    _must_not_be_split_inside(root, images, container)
    return root, {}


def _must_not_be_split_inside(root: str, images: list[str], container: Container) -> None:
    """Raises a `UserError` where the folders of classes have train/ and another split in them: CLASS/train/*."""
    inside = [name.removeprefix(root).split("/")[1:-1] for name in images]
    named = {folder: split_named(folder) for folder in sorted({folders[0] for folders in inside if folders})}
    found = [folder for folder, split in named.items() if split is not None]
    if "train" in named.values() and len({named[folder] for folder in found}) > 1:
        raise UserError(f"{container.path} has {' and '.join(found)} inside of its classes; {SHAPE}")
