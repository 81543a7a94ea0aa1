"""Which files of a folder are images. Imports nothing that takes time: a mistake in a path is told at once."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.errors import UserError

KINDS = (".jpg", ".jpeg", ".png")


def find_images(folder: Path) -> list[Path]:
    """Every JPEG and PNG file in `folder` and below it, in the order of their names; or the one that `folder` is.

    Raises:
        UserError: it is no folder, or has no such file.
    """
    if folder.is_file() and folder.suffix.lower() in KINDS:
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --images takes a folder of JPEG or PNG files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    if not files:
        raise UserError(f"{folder} has no {', '.join(KINDS)} file in it; --images takes a folder of JPEG or PNG files")
    return files


def not_images(folder: Path) -> list[str]:
    """The other files in `folder` and below it: a line with how many there are, and the first."""
    others = sorted(path for path in folder.rglob("*") if path.suffix.lower() not in KINDS and path.is_file())
    return (
        [f"{len(others)} files that are not {', '.join(KINDS)}, such as {others[0].relative_to(folder)}"]
        if others
        else []
    )
