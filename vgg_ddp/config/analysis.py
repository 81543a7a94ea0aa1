"""The keys of the analysis of what the network gets wrong."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

import msgspec

from vgg_ddp.config.group import Group, key


class AnalysisConfig(Group, frozen=True):
    """What the evaluation looks for in the network's mistakes."""

    groups: Annotated[
        dict[str, list[str]],
        key(
            "groups of classes to judge whether a mistake keeps the kind, e.g. {pets: [cat, dog], birds: [owl, gull]}; "
            "none: the data set's own, else those found on the validation images"
        ),
    ] = msgspec.field(default_factory=dict)

    budget: Annotated[
        Literal["full", "small", "none"],
        key(
            "how long to look for causes of mistakes (nearest training images, what the network relies on, a map); full: up "
            "to a minute on two cores for images of 32 pixels; small: seconds; none: not at all"
        ),
    ] = "full"
    attributes: Annotated[
        str | None,
        key(
            "CSV of attributes of test images, to give the accuracy by each: first column the file's name or the image's "
            "index, then a column an attribute; null: none"
        ),
    ] = None
    human_labels: Annotated[
        str | None,
        key(
            "how many people gave each test image each class, as CIFAR-10H has it: .npy or .csv of counts or shares, "
            "one row per image, one column per class; null: none"
        ),
    ] = None

    def __post_init__(self) -> None:
        named = Counter(name for members in self.groups.values() for name in members)
        twice = next((name for name, times in named.items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"analysis.groups names the class {twice!r} twice; a class belongs to one group at most")
        empty = next((group for group, members in self.groups.items() if not members), None)
        if empty is not None:
            raise ValueError(f"analysis.groups: {empty!r} names no class")
