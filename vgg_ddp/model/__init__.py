"""The network and what belongs to it: its convolutions, sync batch norm, activation checkpointing, preprocessing."""

from vgg_ddp.model.initialization import initialize
from vgg_ddp.model.network import VGG, vgg

__all__ = ["VGG", "initialize", "vgg"]
