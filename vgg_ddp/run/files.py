"""Files of a run: written so that a reader, or a crash, sees the whole or nothing; JSON read back; hashes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vgg_ddp.errors import UserError
from vgg_ddp.run.console import say

EXCHANGING = ".exchanging-"  # begins the name of a folder between the steps of `exchange`
NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # a file system has no such operation


def lock_at(path: Path) -> FileLock:
    """The lock file `path`, which nobody holds yet.

    Where the file system has no locks, acquiring it raises an OSError: by default filelock would sometimes (ENOSYS)
    take the file's existence for the lock, which would stay for ever after a crash.
    """
    return FileLock(path, fallback_to_soft=False)


def hold(lock: FileLock, seconds: float, report: Callable[[str], None]) -> None:
    """Acquire a lock. Where the file system has none that is reported, and nothing is held.

    Raises:
        Timeout: another process held it for so many seconds.
    """
    try:
        lock.acquire(timeout=seconds)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        report_no_locks(Path(lock.lock_file).parent, report)


def report_no_locks(folder: Path, report: Callable[[str], None]) -> None:
    """Report that nothing keeps other processes from writing in `folder`."""
    report(f"{folder} is on a file system without locks: see to it that no other process writes there")


@contextmanager
def locked(path: Path, waiting: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`. While another process holds it, report `waiting` and wait without limit.

    On a file system without locks nothing is held: whoever then writes there reports that, once.
    """
    lock = lock_at(path)
    try:
        hold(lock, 0, lambda _: None)
    except Timeout:
        report(waiting)
        hold(lock, -1, lambda _: None)
    try:
        yield
    finally:
        lock.release()


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file so that a reader, or a crash, sees the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        write_durably(aside, data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap two files or folders in one step (Linux's renameat2), so that neither name is ever without one.

    Network file systems cannot: there it takes three steps, and a message says so.
    """
    AT_FDCWD, RENAME_EXCHANGE = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        return
    code = ctypes.get_errno()
    if code not in NOT_HERE:
        raise OSError(code, os.strerror(code), str(other))
    say(
        f"{other.parent} is on a file system that cannot exchange folders in one step: {other.name} is replaced in three"
    )
    aside = other.with_name(f"{EXCHANGING}{other.name}")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def recover_exchanged(folder: Path) -> None:
    """Give what a kill left in `folder` without its name, between the steps of `exchange`, its name again.

    Where what took its place has the name, it is removed. For the one process that writes there.
    """
    for aside in folder.glob(f"{EXCHANGING}*"):
        name = folder / aside.name.removeprefix(EXCHANGING)
        if name.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, name)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory last through a power cut, on file systems that know of it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path, remedy: str = "remove it and try again") -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file.

    Raises:
        UserError: the file is damaged; `remedy` says what to do.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
