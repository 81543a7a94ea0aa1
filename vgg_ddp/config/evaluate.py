"""The keys of evaluation: how often, of which checkpoint, and how the network is shown an image."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vgg_ddp.config.group import Group, key


class EvaluateConfig(Group, frozen=True):
    """Validation during the training, and the evaluation after it."""

    batch: Annotated[int, key("images in one forward pass, per rank", ge=1)] = 500
    every_epochs: Annotated[int, key("validate after every this many epochs, and the last", ge=1)] = 1
    checkpoint: Annotated[Literal["last", "best"], key("which checkpoint the final evaluation takes")] = "last"
    protocol: Annotated[
        Literal["single", "shifted", "dense", "multicrop", "dense+multicrop"],
        key(
            "what the network sees of a test image; single: its centre; shifted: also moved by a pixel; dense: all of "
            "it, with the network made fully convolutional; multicrop: 5 x 5 crops; the soft-max is averaged over "
            "several views (section 3.2 of the paper)"
        ),
    ] = "single"
    scales: Annotated[
        list[Annotated[int, Meta(ge=16)]],
        key(
            "test scales Q: shorter sides to resize test images to, e.g. [256,384,512], pixels; []: as data.resize says"
        ),
    ] = msgspec.field(default_factory=list)
    flips: Annotated[
        bool | Literal["auto"],
        key("average over mirrored test images too; auto: if trained on mirrored images, except with protocol=single"),
    ] = "auto"
    views: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | Literal["all"],
        key(
            "all: every view of every image; a probability, e.g. 0.6: the first view alone if it gives a class at least that"
        ),
    ] = "all"

    @property
    def once(self) -> EvaluateConfig:
        """The same with each image shown once, as in validation."""
        return msgspec.structs.replace(self, protocol="single", scales=[], flips="auto", views="all")

    def __post_init__(self) -> None:
        several = self.protocol in ("shifted", "dense+multicrop") or len(self.scales) > 1 or self.flips is True
        if self.views != "all" and not several:
            raise ValueError(
                f"evaluate.views={self.views:g} needs more than one view of an image: set evaluate.protocol=shifted or "
                "evaluate.flips=true, or evaluate.views=all"
            )

    @property
    def name(self) -> str:
        """The folder in RUN/evaluations of what these keys give, e.g. "dense-256-512"; "" for the evaluation of RUN itself."""
        words = [self.protocol, *map(str, self.scales)]
        if self.flips is True or (self.flips is False and self.protocol != "single"):
            words.append("flips" if self.flips else "no-flips")
        if self.views != "all":
            words.append(f"if-below-{self.views:g}")
        return "" if words == ["single"] else "-".join(words)
