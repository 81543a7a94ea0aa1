"""Where images come from.

One module per format, each with a function `find`: what it finds in a container of files (`containers`), as one of the
two kinds of source (`source`), or None. To add a format, write such a module and give it a place in `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vgg_ddp.config.schema import BUILT_IN_SOURCES
from vgg_ddp.data.download import ARCHIVES, fetch
from vgg_ddp.data.sources import arrays, cifar, class_folders, label_files, parquet, webdataset
from vgg_ddp.data.sources.built_in import digits
from vgg_ddp.data.sources.containers import Container, open_container
from vgg_ddp.data.sources.source import Source
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import file_sha256

# In the order in which they are tried; class folders, which raise where there are none, are last.
FORMATS: tuple[Callable[[Container], Source | None], ...] = (
    cifar.find,
    arrays.find,
    parquet.find,
    webdataset.find,
    label_files.find,
    class_folders.find,
)

# The names of sources that are downloaded, and the archives that hold each, best first.
ARCHIVE_NAMES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}


class Unavailable(UserError):
    """A source that is downloaded, and can be neither found nor downloaded here."""


def find_source(source: str, downloads: Path, report: Callable[[str], None]) -> Source:
    """The source that `source` names, a path or one of `BUILT_IN_SOURCES`; an archive is looked for here, then downloaded.

    Raises:
        Unavailable: the archive of a built-in source can be neither found nor downloaded.
        UserError: see `open_source`.
    """
    if source == "digits":
        return digits()
    if source not in ARCHIVE_NAMES:
        return open_source(Path(source))
    archives = [ARCHIVES[name] for name in ARCHIVE_NAMES[source]]
    for archive in archives:
        for folder in (downloads, downloads.parent, Path("data"), Path()):
            path = folder / archive.name
            if path.is_file() and path.stat().st_size == archive.bytes and file_sha256(path) == archive.sha256:
                return open_source(path)
    problems = []
    for archive in archives:
        try:
            path = fetch(archive, downloads, report=report)
        except UserError as error:
            problems.append(str(error))
        else:
            return open_source(path)
    raise Unavailable(problems[0])


def must_be_there(path: Path) -> None:
    """Raises a `UserError` if `path` cannot be a source: nothing is there, or it has no end, such as the root folder."""
    try:
        there, place = path.exists(), os.path.realpath(path)
    except OSError as error:
        raise UserError(f"data.source: {path} cannot be read: {error.strerror}") from None
    if not there:
        names = ", ".join(BUILT_IN_SOURCES)
        raise UserError(f"data.source: {path} does not exist; give {names}, an image folder, or an archive")
    endless = place in ("/", "/dev", "/proc", "/sys") or place.startswith(("/proc/", "/sys/"))
    if endless or not (path.is_dir() or path.is_file()):
        raise UserError(f"data.source: {path} is no file or folder of images")


def open_source(path: Path) -> Source:
    """The source at `path`, in whichever of `FORMATS` it is.

    Raises:
        UserError: nothing is there, or it is none of these.
    """
    must_be_there(path)
    container = open_container(path)
    source = next((found for find in FORMATS if (found := find(container)) is not None), None)
    assert source is not None, "the last format raises"
    return source
