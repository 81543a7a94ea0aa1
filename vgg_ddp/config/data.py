"""Keys of the data: which images, at which size, and how they are loaded."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vgg_ddp.config.group import Group, key


class DataConfig(Group, frozen=True):
    """Which images, at which size, and how they are loaded."""

    source: Annotated[
        str,
        key("cifar10, cifar100, digits, an image folder, an archive (docs/data.md), or a prepared dataset"),
    ] = "cifar10"
    fallback: Annotated[Literal["none", "digits"], key("what to train on where cifar10 or cifar100 cannot be had")] = (
        "none"
    )
    directory: Annotated[str, key("where downloads and prepared datasets are kept")] = "datasets"
    unreadable: Annotated[
        Literal["refuse", "drop"], key("images that cannot be read: refuse the source, or leave them out")
    ] = "refuse"
    unusual: Annotated[
        Literal["convert", "refuse"], key("images that are not 8-bit RGB, or animated, tiny, huge or wrongly named")
    ] = "convert"
    test_share: Annotated[
        float, key("share of each class to test on, of a source that has no test or validation images", gt=0, lt=1)
    ] = 0.2
    split_seed: Annotated[
        int,
        key("seed that draws test_share and train_share; not the run's, so that all runs have the same images", ge=0),
    ] = 0
    resize: Annotated[
        Annotated[int, Meta(ge=8)] | Literal["auto"] | None,
        key(
            "resize the shorter side to this first, pixels; null keeps the size; auto: keeps it too, unless images are "
            "smaller or much larger than image_size"
        ),
    ] = "auto"
    image_size: Annotated[int, key("side of the square that the network sees, pixels", ge=16)] = 32
    photo_size: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        key("replaces image_size where most images are at least this large, pixels; null: never"),
    ] = None
    normalisation: Annotated[
        Literal["auto", "data", "imagenet"],
        key(
            "mean and deviation of pixels: of the data set, or ImageNet's, as torchvision's weights want it; auto: ImageNet's "
            "where model.initialize_from is a file, else the data set's"
        ),
    ] = "auto"
    train_sizes: Annotated[
        list[Annotated[int, Meta(ge=16)]],
        key("sizes to shrink training images to, one per epoch, pixels; later epochs use image_size"),
    ] = msgspec.field(default_factory=list)
    validation: Annotated[
        float,
        key(
            "share of the training set held out for validation, stratified; a source's own validation images take its place",
            ge=0,
            lt=1,
        ),
    ] = 0.1
    train_share: Annotated[
        float,
        key(
            "share of each class's training images to train and validate on, drawn by split_seed: to try things on few images",
            gt=0,
            le=1,
        ),
    ] = 1.0
    balance_classes: Annotated[
        bool, key("train on every class equally often: each epoch repeats images of the classes that have few")
    ] = False
    resident_share: Annotated[
        float, key("loader=auto keeps the decoded images on the device if they fit into this share of it", ge=0, le=1)
    ] = 0.25
    residency: Annotated[
        Literal["whole", "sharded"],
        key("resident loader: every rank keeps all images, or its share, exchanging what a batch needs"),
    ] = "whole"
    workers: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["auto"],
        key("worker processes of the torch loader, per rank; auto: the cores that a rank has for loading"),
    ] = "auto"
    decode_threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        key("CPU threads of the dali loader, per rank; auto: the cores that a rank has for loading"),
    ] = "auto"
    prefetch: Annotated[int, key("batches made ready ahead of the step", ge=1)] = 2

    def __post_init__(self) -> None:
        if isinstance(self.resize, int) and self.resize < self.image_size:
            raise ValueError(f"data.resize ({self.resize}) is smaller than data.image_size ({self.image_size})")
        if self.photo_size is not None and self.photo_size < self.image_size:
            raise ValueError(f"data.photo_size ({self.photo_size}) is smaller than data.image_size ({self.image_size})")

    @property
    def shorter_side(self) -> int | None:
        """The pixels that an image's shorter side is resized to; None keeps it, as does an "auto" not settled yet."""
        return None if self.resize == "auto" else self.resize
