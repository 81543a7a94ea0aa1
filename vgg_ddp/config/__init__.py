"""The typed configuration: what can be set (schema and the groups beside it), and how it is read (reading)."""

from vgg_ddp.config.reading import dump, flat, load, with_absolute_path, with_absolute_paths
from vgg_ddp.config.schema import Config

__all__ = ["Config", "dump", "flat", "load", "with_absolute_path", "with_absolute_paths"]
