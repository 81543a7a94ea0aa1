"""Which part of a source is what: the names of splits, and a test split for a source that comes without one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from vgg_ddp.data.order import stratified_split
from vgg_ddp.data.sources.source import SPLITS, Pixels, PixelSource, Source
from vgg_ddp.errors import UserError

# What people call the folder or the file of a split; in capitals too.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


# Names that split an image folder only where none of the others stands for the same: such a folder may hold anything.
RARE_NAMES = ("dev", "eval", "evaluation")


def split_named(name: str) -> str | None:
    """The split that a folder of this name holds; None where the name is not one of a split."""
    return SPLIT_NAMES.get(name.lower())


def split_in(path: str) -> str | None:
    """The split in the path of a file of many images ("plain_text/test-00000-of-00001.parquet"); None where it names none."""
    words = re.split(r"[^a-z]+", path.lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), None)


def without_split(splits: Mapping[str, str | None]) -> list[str]:
    """What to say of files that name no split, which are trained on, where others name one; nothing where all do or none.

    Args:
        splits: of each file by its path, as `split_in` gives it.
    """
    unnamed = sorted(path for path, split in splits.items() if split is None)
    if not unnamed or len(unnamed) == len(splits):
        return []
    return [f"files taken as train, because their names say no split: {len(unnamed)}, such as {unnamed[0]}"]


def must_be_one_revision(names: Iterable[str], path: object) -> None:
    """Raises a `UserError` where files of several revisions of a set lie in Hugging Face's cache: each has every image."""
    found = (re.match(r"(?:.*/)?snapshots/[^/]+/", name) for name in names)
    revisions = sorted({match[0] for match in found if match})
    if len(revisions) > 1:
        raise UserError(f"{path} holds several sets: {', '.join(revisions)}; give one of them")


def with_test_split(source: Source, share: float, seed: int) -> Source:
    """The source with a test split: its own; else its validation split; else `share` of each class, drawn by `seed`.

    Raises:
        UserError: it has no images to train on, or a share of them is not a single image.
    """
    counts = source.counts
    if not counts.get("train"):
        raise UserError(f"{source.path} has no images to train on")
    if counts.get("test"):
        return source
    if counts.get("validation"):
        remark = f"there is no test split, so the {counts['validation']} images of the validation split are tested on"
        return replace(_renamed(source, "validation", "test"), remarks=(*source.remarks, remark))
    source, tested_on = _split_off(source, share, seed)
    if not tested_on:
        raise UserError(
            f"{source.path} has no test images, and data.test_share={share:g} of its images is less than one"
        )
    remark = (
        f"there is no test split, so {tested_on} of {counts['train']} images are set apart for it "
        f"(data.test_share={share:g} of each class, data.split_seed={seed})"
    )
    return replace(source, remarks=(*source.remarks, remark))


def _renamed(source: Source, old: str, new: str) -> Source:
    if isinstance(source, PixelSource):
        return replace(source, splits={new if name == old else name: value for name, value in source.splits.items()})
    return replace(source, keys={k: (new if split == old else split, c) for k, (split, c) in source.keys.items()})


def _split_off(source: Source, share: float, seed: int) -> tuple[Source, int]:
    """The source with a test split out of its training images, and how many those are."""
    if isinstance(source, PixelSource):
        whole = source.splits["train"]
        train, test = stratified_split(whole.labels, share, seed)
        splits = {
            name: Pixels(whole.images[part], whole.labels[part]) for name, part in (("train", train), ("test", test))
        }
        return replace(source, splits=splits), len(test)
    keys = sorted(source.keys)
    _, test = stratified_split(np.array([source.keys[key][1] for key in keys]), share, seed)
    chosen = {keys[i]: ("test", source.keys[keys[i]][1]) for i in test}
    return replace(source, keys={**source.keys, **chosen}), len(test)


def must_be_several(classes: list[str], path: object) -> None:
    """Raises a `UserError` where there are fewer than two classes."""
    if not classes:
        raise UserError(f"{path} holds no image with a class")
    if len(classes) < 2:
        raise UserError(f"{path} has a single class, {classes[0]!r}; there is nothing to tell apart")


def only_used(classes: list[str], used: set[int]) -> tuple[list[str], dict[int, int], list[str]]:
    """The classes that have images, their new numbers by their old ones, and a message about the other classes."""
    unused = [name for number, name in enumerate(classes) if number not in used]
    numbers = {old: new for new, old in enumerate(sorted(used))}
    said = [f"classes left out, because no image is of them: {len(unused)}, such as {unused[0]!r}"] if unused else []
    return [classes[old] for old in numbers], numbers, said


def must_train_every_class(source: Source) -> None:
    """Raises a `UserError` if a class of image files has images in other splits, but none to train on."""
    if isinstance(source, PixelSource):
        return
    counts = Counter(source.keys.values())
    for label, name in enumerate(source.classes):
        if not counts["train", label]:
            others = ", ".join(f"{count} of {split}" for split in SPLITS if (count := counts[split, label]))
            raise UserError(
                f"{source.path}: class {name!r} has no training images, only {others}; add some, take the class away, or "
                "lower data.test_share where that drew them"
            )
