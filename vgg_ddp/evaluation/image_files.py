"""Which files of a folder are images. Imports nothing that takes time: a mistake in a path is told at once."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.containers import hiding, listing
from vgg_ddp.errors import UserError


def find_images(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it, in the order of their names, but for what is hidden.

    Raises:
        UserError: it is no folder, or has no such file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --images takes a folder of image files")
    files = sorted(
        folder / name for name in listing(folder).files if name.lower().endswith(SUFFIXES) and hiding(name) is None
    )
    if not files:
        raise UserError(f"{folder} has no image in it ({', '.join(SUFFIXES)}); --images takes a folder of image files")
    return files
