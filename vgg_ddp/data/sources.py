"""Where images come from: official archives, image folders, tars of one, and the digits inside scikit-learn.

A `PixelSource` holds decoded images; an `EncodedSource` knows its files and yields their bytes one by one.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.config.schema import BUILT_IN_SOURCES
from vgg_ddp.data import cifar
from vgg_ddp.data.cifar import Pixels
from vgg_ddp.data.dataset import file_sha256
from vgg_ddp.data.download import ARCHIVES, fetch
from vgg_ddp.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "test")


# The names of sources that are downloaded, and the archives that hold each, best first.
ARCHIVE_NAMES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}


class Unavailable(UserError):
    """A source that is downloaded, and can be neither found nor downloaded here."""


@dataclass(frozen=True)
class Image:
    """One image of a source, on its way into a dataset.

    Attributes:
        key: its path in the source ("train/cat/0001.jpg").
        split: "train" or "test".
        label: its class.
        data: the file's bytes; empty where the source has pixels.
        pixels: uint8 height x width x 3, which are to be encoded; None where the source has files.
        new_suffix: the suffix of the file that it was encoded into.
    """

    key: str
    split: str
    label: int
    data: bytes
    pixels: NDArray[np.uint8] | None = None
    new_suffix: str = ""

    @property
    def suffix(self) -> str:
        """The suffix of its file in the dataset, without the dot."""
        return self.new_suffix or self.key.rsplit(".", 1)[-1].lower()


@dataclass(frozen=True)
class PixelSource:
    """Images of one size, decoded. `origin` says where they came from."""

    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    splits: dict[str, Pixels]
    origin: dict[str, str | int]
    path: str

    @property
    def count(self) -> int:
        """Images of all splits."""
        return sum(len(pixels.labels) for pixels in self.splits.values())

    def read(self) -> Iterator[Image]:
        """Every image, split after split."""
        for split, pixels in self.splits.items():
            for i, (image, label) in enumerate(zip(pixels.images, pixels.labels)):
                yield Image(f"{split}/{i:08d}", split, int(label), b"", image)


@dataclass(frozen=True)
class EncodedSource:
    """Image files by key; `read` yields them in the source's own order."""

    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    keys: dict[str, tuple[str, int]]  # key to split and class
    ignored: int
    origin: dict[str, str | int]
    path: Path
    root: str = ""  # of a tar that holds the folder itself, the folder's name and a slash

    @property
    def count(self) -> int:
        """Images of all splits."""
        return len(self.keys)

    def read(self) -> Iterator[Image]:
        """Every image, in the source's own order.

        Raises:
            UserError: a file that cannot be read, or a damaged tar.
        """
        read = _read_folder if self.path.is_dir() else _read_tar
        for key, data in read(self):
            split, label = self.keys[key]
            yield Image(key, split, label, data)


def _read_folder(source: EncodedSource) -> Iterator[tuple[str, bytes]]:
    for key in source.keys:
        try:
            yield key, (source.path / key).read_bytes()
        except OSError as error:
            raise UserError(f"{source.path / key} cannot be read: {error.strerror}") from None


def _read_tar(source: EncodedSource) -> Iterator[tuple[str, bytes]]:
    with open_tar(source.path) as archive:
        for member in archive:
            key = str(PurePosixPath(member.name)).removeprefix(source.root)
            if key in source.keys and member.isfile():
                file = archive.extractfile(member)
                assert file is not None, "a regular file"
                yield key, file.read()


def find_source(source: str, downloads: Path, report: Callable[[str], None]) -> PixelSource | EncodedSource:
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


def missing(path: Path) -> UserError:
    """What to say of a source that is not there."""
    names = ", ".join(BUILT_IN_SOURCES)
    return UserError(f"data.source: {path} does not exist; give {names}, an archive, an image folder, or a tar of one")


def open_source(path: Path) -> PixelSource | EncodedSource:
    """The source at `path`: an image folder, a tar of one, or an official CIFAR archive.

    Raises:
        UserError: nothing is there, or it is none of these.
    """
    if path.is_dir():
        walks = (os.walk(path / split, followlinks=True) for split in SPLITS)
        found = sorted(Path(folder, name) for walk in walks for folder, _, names in walk for name in names)
        keys = [file.relative_to(path).as_posix() for file in found if file.is_file()]
        return _image_folder(path, keys, {"kind": "image folder", "path": str(path)})
    if not path.exists():
        raise missing(path)
    origin: dict[str, str | int] = {
        "kind": "archive",
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
    with open_tar(path) as archive:
        names = [_checked(member, path) for member in archive if not member.isdir()]
        assert archive.fileobj is not None
        while archive.fileobj.read(1 << 20):  # to the end, where a compressed file has its checksum
            pass
    layout = next((layout for name in names if (layout := cifar.layout_of(name.split("/")[0]))), None)
    if layout is None:
        root = _root(names)
        return replace(_image_folder(path, [name.removeprefix(root) for name in names], origin), root=root)
    with open_tar(path) as archive:
        classes, splits = cifar.read(archive, path, layout)
    groups = cifar.GROUPS_CIFAR10 if layout.name == "CIFAR-10" else {}
    return PixelSource(layout.name, classes, groups, splits, origin, str(path))


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged or cut header for the end of the archive; here only the end mark is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, plain or compressed; what is wrong with it while it is read becomes a `UserError`."""
    try:
        with tarfile.open(path, tarinfo=_StrictInfo) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole tar archive ({error}); it may be truncated: download it again"
        ) from None


def _checked(member: tarfile.TarInfo, path: Path) -> str:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{path} has a member outside of its folder: {member.name!r}; it is refused whole")
    if member.issym() or member.islnk():
        raise UserError(f"{path}: {member.name} is a link; pack it with tar --dereference --hard-dereference")
    return str(name)


def _root(names: list[str]) -> str:
    """The folder that all of a tar lies in, with a slash; empty where train/ and test/ are at its top."""
    tops = {PurePosixPath(name).parts[0] for name in names}
    top = next(iter(tops), "")
    inner = {PurePosixPath(name).parts[1] for name in names if len(PurePosixPath(name).parts) > 1}
    return f"{top}/" if len(tops) == 1 and top not in SPLITS and inner & set(SPLITS) else ""


def _image_folder(path: Path, names: list[str], origin: dict[str, str | int]) -> EncodedSource:
    """A folder of SPLIT/CLASS/IMAGE, or the list of a tar of one."""
    images = [n for n in sorted(names) if n.lower().endswith(SUFFIXES) and len(PurePosixPath(n).parts) >= 3]
    folders = {split: {PurePosixPath(n).parts[1] for n in images if n.startswith(f"{split}/")} for split in SPLITS}
    for split in SPLITS:
        if not folders[split]:
            raise UserError(
                f"{path} has no images in {split}/CLASS/*.jpg or *.png; an image folder is train/CLASS/* and test/CLASS/*"
            )
    only = sorted(folders["test"] - folders["train"])
    if only:
        raise UserError(
            f"{path}: class {only[0]!r} is only in test; every class needs training images in train/{only[0]}/"
        )
    for name in images:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: the file name {name!r} is not UTF-8; rename it") from None
    classes = sorted(folders["train"])
    if len(classes) < 2:
        raise UserError(f"{path} has a single class, {classes[0]!r}; there is nothing to tell apart")
    number = {name: i for i, name in enumerate(classes)}
    groups = cifar.GROUPS_CIFAR10 if sorted(c for g in cifar.GROUPS_CIFAR10.values() for c in g) == classes else {}
    parts = {n: PurePosixPath(n).parts for n in images}
    keys = {n: (p[0], number[p[1]]) for n, p in parts.items() if p[0] in SPLITS}
    return EncodedSource(_stem(path), classes, groups, keys, len(names) - len(keys), origin, path)


def _stem(path: Path) -> str:
    name = path.resolve().name
    for suffix in (".xz", ".gz", ".bz2", ".tgz", ".tar"):
        name = name.removesuffix(suffix)
    return name


def digits() -> PixelSource:
    """The 1,797 handwritten digits inside scikit-learn (Alpaydin & Kaynak, UCI 1998), enlarged from 8 to 32 pixels.

    A fifth of each class, taken in the set's own order, is the test split: the writers of its end are not in its beginning.
    """
    from PIL import Image as PillowImage
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    enlarged = (PillowImage.fromarray(image).resize((32, 32), PillowImage.Resampling.BICUBIC) for image in small)
    grey = np.stack([np.asarray(image) for image in enlarged])
    images, labels = np.repeat(grey[..., None], 3, axis=3), bunch.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[members[round(0.8 * len(members)) :]] = True
    splits = {"train": Pixels(images[~test], labels[~test]), "test": Pixels(images[test], labels[test])}
    return PixelSource(
        "digits",
        [str(i) for i in range(10)],
        {},
        splits,
        {"kind": "built in", "package": "scikit-learn"},
        "digits",
    )
