"""Finds the prepared dataset that a configuration names, and prepares it first where it is not there yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from vgg_ddp.config.schema import BUILT_IN_SOURCES, DataConfig
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.sources import Unavailable, missing
from vgg_ddp.errors import UserError


def ensure(config: DataConfig, report: Callable[[str], None]) -> tuple[Path, list[str]]:
    """The directory of the prepared dataset that `data.source` names, prepared first if it is not there.

    Returns:
        The directory, and the fallbacks that were taken (see `data.fallback`).

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    try:
        return _ensure(config.source, Path(config.directory), report), []
    except Unavailable as error:
        if config.fallback == "none":
            raise
        note = f"{config.source} could not be had, so {config.fallback} took its place ({error})"
        return _ensure(config.fallback, Path(config.directory), report), [note]


def _ensure(source: str, directory: Path, report: Callable[[str], None]) -> Path:
    path = Path(source)
    if source not in BUILT_IN_SOURCES and (path / "dataset.json").is_file():
        return path
    target = directory / (source if source in BUILT_IN_SOURCES else _folder_name(path))
    if (target / "dataset.json").is_file():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / f".{target.name}.lock")
        with lock:  # several processes may ask at once; the first prepares, the others find it
            if not (target / "dataset.json").is_file():
                prepare(source, target, report, downloads=directory / "downloads")
    except OSError as error:
        raise UserError(f"data.directory {directory} cannot be written: {error.strerror}; set data.directory") from None
    return target


def _folder_name(path: Path) -> str:
    """A name for the dataset made from what is at `path` now: another one once that has changed."""
    if not path.exists():
        raise missing(path)
    walk = os.walk(path, followlinks=True)  # yields nothing for a file
    paths = [path, *(Path(folder, name) for folder, folders, files in walk for name in folders + files)]
    stats = [(str(entry.resolve()), entry.stat()) for entry in sorted(paths) if entry.exists()]
    text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return f"{path.resolve().name.split('.')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
