"""The typed configuration: what can be set (schema and the groups beside it), and how it is read (reading)."""

from vgg_ddp.config.reading import dump, load
from vgg_ddp.config.schema import Config

__all__ = ["Config", "dump", "load"]
