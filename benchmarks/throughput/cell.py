"""A setting of the grid: a training of one network, batch and precision, as a configuration."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError


@dataclass(frozen=True)
class Cell:
    """One setting of the grid."""

    network: str
    image_size: int
    batch: int
    precision: str
    layout: str
    compile: bool | str = False
    engine: str = "ddp"
    recompute: str = "none"
    fused: bool = True

    @property
    def name(self) -> str:
        """The settings in words; those left at their defaults are not named."""
        compiled = {False: "", True: " compiled", "stages": " compiled by stages", "graph": " graph"}[self.compile]
        engine = "" if self.engine == "ddp" else f" {self.engine}"
        recompute = "" if self.recompute == "none" else f" {self.recompute} again"
        cell = f"{self.network} {self.image_size}px {self.batch} {self.precision} {self.layout}"
        return cell + compiled + engine + recompute + ("" if self.fused else " unfused")

    def config(self, world: World) -> Config:
        """The configuration of a training with these settings.

        Raises:
            UserError: there is no such training.
        """
        settings = {
            "network": self.network,
            "batch": self.batch * world.size,
            "precision": self.precision,
            "channels_last": self.layout == "channels_last",
            "compile": self.compile,
            "engine": self.engine,
            "recompute": self.recompute,
            "model": {"fused": self.fused},
            "data": {"image_size": self.image_size},
            "augment": {"crop_padding": 4, "flip": True},
        }
        try:
            return msgspec.convert(settings, Config)
        except msgspec.ValidationError as error:
            raise UserError(str(error)) from None
