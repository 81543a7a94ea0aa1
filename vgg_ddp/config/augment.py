"""The keys of augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from vgg_ddp.config.group import Group, key


class AugmentConfig(Group, frozen=True):
    """Random changes of training images, of their geometry and of their appearance."""

    crop_padding: Annotated[int, key("reflect-pad by this before the random crop, pixels", ge=0)] = 0
    flip: Annotated[
        bool | Literal["alternating", "auto"],
        key(
            "flip left to right: with probability 1/2, or (alternating) each image in every second epoch; auto: alternating, "
            "unless the data set is one of signs"
        ),
    ] = False
    rotation: Annotated[float, key("rotate by a uniform angle up to this, degrees", ge=0, le=180)] = 0.0
    scale_jitter: Annotated[
        Annotated[list[Annotated[int, Meta(ge=8)]], Meta(min_length=2, max_length=2)] | None,
        key("resize the shorter side to a random size in this range, as the paper does, e.g. [256, 512], pixels"),
    ] = None
    random_resized_crop: Annotated[
        Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=2, max_length=2)] | None,
        key("scale a random box to the image size; its share of the area, e.g. [0.08, 1]"),
    ] = None
    brightness: Annotated[float, key("colour jitter: brightness times 1 ± up to this", ge=0, le=1)] = 0.0
    contrast: Annotated[float, key("colour jitter: contrast times 1 ± up to this", ge=0, le=1)] = 0.0
    saturation: Annotated[float, key("colour jitter: saturation times 1 ± up to this", ge=0, le=1)] = 0.0
    hue: Annotated[float, key("colour jitter: hue turned by up to this, turns", ge=0, le=0.5)] = 0.0
    colour_shift: Annotated[
        float, key("shift colours along the set's principal components, standard deviations (the paper: 0.1)", ge=0)
    ] = 0.0
    cutout: Annotated[int, key("blank a random square of this side, pixels", ge=0)] = 0
    mixup: Annotated[float, key("mix pairs of images, by Beta(this, this); 0 is off", ge=0)] = 0.0
    cutmix: Annotated[float, key("paste boxes between pairs of images, by Beta(this, this); 0 is off", ge=0)] = 0.0
    strong_epochs: Annotated[
        Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=2, max_length=2)] | None,
        key(
            "use cutout, mixup and cutmix only in these epochs, counted from 0, e.g. [4, 8]: epochs 4 to 7; null: in all"
        ),
    ] = None
    randaugment: Annotated[
        Annotated[int, Meta(ge=0, le=30)] | None,
        key("RandAugment's magnitude; loader=torch alone has it; null is off"),
    ] = None
    randaugment_operations: Annotated[int, key("RandAugment's operations on each image", ge=1)] = 2

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed: targets are then shares of classes, not labels."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        if self.strong_epochs is not None and not (self.cutout or self.mixes):
            raise ValueError("augment.strong_epochs needs augment.cutout, augment.mixup or augment.cutmix")
        for name in ("scale_jitter", "random_resized_crop", "strong_epochs"):
            limits = getattr(self, name)
            if limits is not None and (limits[0] > limits[1] or (name == "strong_epochs" and limits[0] == limits[1])):
                raise ValueError(f"augment.{name} must rise: {limits}")
        if self.random_resized_crop is not None and (self.scale_jitter is not None or self.crop_padding):
            raise ValueError(
                "augment.random_resized_crop chooses its own box; leave out augment.scale_jitter and augment.crop_padding"
            )
