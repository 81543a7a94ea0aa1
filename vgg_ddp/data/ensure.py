"""Finds the prepared dataset that a configuration names, and prepares it first where it is not there yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.schema import BUILT_IN_SOURCES
from vgg_ddp.data.conversion import PREPARATION, Policy
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.sources import Unavailable, must_be_there
from vgg_ddp.data.sources.containers import listing
from vgg_ddp.data.storage import Storage
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import locked


def ensure(config: DataConfig, report: Callable[[str], None]) -> tuple[Path, list[str]]:
    """The directory of the prepared dataset that `data.source` names, prepared first if it is not there.

    Returns:
        The directory, and the fallbacks that were taken (see `data.fallback`).

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    try:
        return _ensure(config.source, config, report), []
    except Unavailable as error:
        if config.fallback == "none":
            raise
        note = f"{config.source} could not be had, so {config.fallback} took its place ({error})"
        return _ensure(config.fallback, config, report), [note]


def ensure_at(target: Path, config: DataConfig, fallback: bool, report: Callable[[str], None]) -> None:
    """The same on a host that shares no disk with the first: into `target`, the folder's path on the first host.

    This host would choose another name, since names depend on the modification times of a host's own files.

    Args:
        fallback: whether the first host took `data.fallback`.

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    source = config.fallback if fallback else config.source
    prepared_already = Path(source) == target  # a prepared data set: if it is missing, opening it fails later
    of_another = target.name in BUILT_IN_SOURCES and target.name != source  # a run that took the fallback is evaluated
    if not prepared_already and not of_another:
        _prepare_once(source, target, config, report)


def _ensure(source: str, config: DataConfig, report: Callable[[str], None]) -> Path:
    path, directory = Path(source), Path(config.directory)
    if source not in BUILT_IN_SOURCES and (path / "dataset.json").is_file():
        return path
    target = directory / (source if source in BUILT_IN_SOURCES else _folder_name(path, _policy(config)))
    _prepare_once(source, target, config, report)
    return target


def _prepare_once(source: str, target: Path, config: DataConfig, report: Callable[[str], None]) -> None:
    """Prepare `target` where it is not there; of several processes one does, and the others wait."""
    if (target / "dataset.json").is_file():
        return
    directory, downloads = target.parent, Path(config.directory) / "downloads"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that prepares {target}"
        with locked(directory / f".{target.name}.lock", waiting, report):
            if not (target / "dataset.json").is_file():
                prepare(source, target, report, downloads, Storage(), _policy(config))
    except OSError as error:
        raise UserError(f"data.directory {directory} cannot be written: {error.strerror}; set data.directory") from None


def _policy(config: DataConfig) -> Policy:
    return Policy(config.unreadable, config.unusual, config.test_share, config.split_seed)


def _folder_name(path: Path, policy: Policy) -> str:
    """A name for the dataset made from what is at `path`; it changes when that, or the way of preparing it, changes."""
    must_be_there(path)
    found = listing(path) if path.is_dir() else None
    entries = [path, *(path / name for name in sorted(found.files + found.folders))] if found else [path]
    stats = [(str(entry.resolve()), entry.stat()) for entry in entries]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    digest = hashlib.sha256("\n".join([*lines, str(policy), PREPARATION]).encode(errors="surrogateescape"))
    return f"{path.resolve().name.split('.')[0]}-{digest.hexdigest()[:8]}"
