"""The keys of the analysis of what the network gets wrong."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

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

    def __post_init__(self) -> None:
        named = Counter(name for members in self.groups.values() for name in members)
        twice = next((name for name, times in named.items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"analysis.groups names the class {twice!r} twice; a class belongs to one group at most")
        empty = next((group for group, members in self.groups.items() if not members), None)
        if empty is not None:
            raise ValueError(f"analysis.groups: {empty!r} names no class")
