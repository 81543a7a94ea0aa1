"""Which files of a folder are images. Imports nothing slow, so that a wrong path is reported at once."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.data.sources.containers import hiding, listing
from vgg_ddp.errors import UserError


def find_images(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it that is not hidden, sorted by name; or `folder` if it is one itself.

    Raises:
        UserError: it is no folder, or has no such file.
    """
    if folder.is_file() and folder.name.lower().endswith(SUFFIXES):
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --images takes a folder of image files")
    files = [folder / name for name in _files(folder) if name.lower().endswith(SUFFIXES)]
    if not files:
        raise UserError(f"{folder} has no image in it ({', '.join(SUFFIXES)}); --images takes a folder of image files")
    return files


def not_images(folder: Path) -> list[str]:
    """The other files in `folder` and below it: a line with how many there are, and the first."""
    others = [name for name in _files(folder) if not name.lower().endswith(SUFFIXES)] if folder.is_dir() else []
    return [f"files that are no images: {len(others)}, such as {others[0]}"] if others else []


def _files(folder: Path) -> list[str]:
    """Every file in `folder` and below it that is not hidden, in the order of their names."""
    return sorted(name for name in listing(folder).files if hiding(name) is None)
