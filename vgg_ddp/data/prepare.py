"""Makes a dataset from a source; it appears whole or not at all, and records the hash of every file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from vgg_ddp.data.conversion import Conversion, Policy
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.record import encoded
from vgg_ddp.data.sources import find_source
from vgg_ddp.data.sources.splitting import must_train_every_class, with_test_split
from vgg_ddp.data.storage import Storage
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import NOT_HERE, report_no_locks


def prepare(
    source: str,
    target: Path,
    report: Callable[[str], None],
    downloads: Path,
    storage: Storage = Storage(),  # noqa: B008 (frozen)
    policy: Policy = Policy(),  # noqa: B008
) -> Dataset:
    """Make the dataset `target` from `source`; it appears whole or not at all.

    Raises:
        UserError: `target` exists, the source is not what it should be, or there is no space.
    """
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or prepare into another directory with --out")
    opened = with_test_split(find_source(source, downloads, report), policy.test_share, policy.split_seed)
    must_train_every_class(opened)
    try:
        with _claimed(target.parent / f".{target.name}.partial", target, report) as aside:
            record = Conversion(opened, storage, policy, aside, report).write()
            (aside / "dataset.json").write_bytes(encoded(record))
            os.rename(aside, target)
    except OSError as error:
        raise UserError(
            f"dataset {target} cannot be written: {error.strerror or error}; free space there or choose another place"
        ) from None
    counts = ", ".join(f"{split.count} {name}" for name, split in record.splits.items())
    report(f"prepared {record.name}: {counts} images of {len(record.classes)} classes in {target}")
    return Dataset(target)


@contextlib.contextmanager
def _claimed(aside: Path, target: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """An empty folder to write in, locked against other processes; removed at the end unless it was renamed.

    The lock is on the folder itself, so that it moves with the folder.
    """
    aside.mkdir(parents=True, exist_ok=True)  # it may be there: a killed process left it, or another one is at work
    try:
        descriptor = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        raise UserError(f"{aside} is a link, where the dataset is written first; remove it") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {target}; wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
            report_no_locks(target.parent, report)
        try:
            if target.exists():  # the other one was quicker
                raise UserError(f"{target} exists already; another process prepared it just now")
            for left in aside.iterdir():
                left.unlink()
            yield aside
        finally:
            if aside.exists() and aside.stat().st_ino == os.fstat(descriptor).st_ino:  # else it is the dataset now
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(descriptor)
