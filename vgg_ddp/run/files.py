"""Writing so that a reader, or a crash, sees the whole or nothing."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file so that a reader, or a crash, sees the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.writing")
    write_durably(aside, data)
    os.replace(aside, path)
    sync_directory(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap two files or folders in one step (Linux's renameat2), so that neither name is ever without one.

    Raises:
        OSError: the file system cannot do it.
    """
    AT_FDCWD, RENAME_EXCHANGE = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def sync_directory(directory: Path) -> None:
    """Make renames in a directory last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
