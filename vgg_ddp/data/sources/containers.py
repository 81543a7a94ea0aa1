"""What holds files: a folder, a tar, a zip, or one file alone. Formats are looked for in their names."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vgg_ddp.data.decoding import SUFFIXES
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import file_sha256

# Names that systems and tools leave among people's files; so is every name that begins with a dot.
SYSTEM_NAMES = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "Desktop.ini",
}
LARGEST = 2 * 2**30  # bytes of a file in an archive, which may be a whole set itself
MOST_EMPTY = 10_000  # files without a byte in an archive: of a million the headers alone take minutes to read
ALONE = (".npz", ".parquet")  # one such file is a whole set
OTHER_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR"}


class Container:
    """Files by name, folders divided by "/".

    Attributes:
        path: where it lies.
        origin: what a dataset records of it.
        names: its files, without what is hidden; sorted.
        folders: its folders, without what is hidden.
        hidden: files and folders that are hidden or a system's own; each such folder once, not what is in it.
        remarks: what a person should know of it, a line each.
    """

    def __init__(self, path: Path, origin: dict[str, Any], files: Iterable[str], folders: Iterable[str]) -> None:
        self.path, self.origin = path, origin
        self.names = sorted(name for name in files if hiding(name) is None)
        self.folders = {name for name in folders if hiding(name) is None}
        self.hidden = {place for name in (*files, *folders) if (place := hiding(name)) is not None}
        for name in self.names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UserError(f"{path}: the file name {name!r} is not UTF-8; rename it") from None

    @property
    def remarks(self) -> list[str]:
        """See the class."""
        if not self.hidden:
            return []
        return [f"hidden or system files and folders left out: {len(self.hidden)}, such as {min(self.hidden)}"]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of some of its files, in its own order.

        Raises:
            UserError: a file that cannot be read, or a damaged archive.
        """
        raise NotImplementedError


def open_container(path: Path) -> Container:
    """What lies at `path`.

    Raises:
        UserError: it is damaged, of a kind that is not read, or has names that are refused.
    """
    if path.is_dir():
        return Folder(path)
    if path.suffix.lower() in ALONE:
        return Folder(path.parent, only=path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for magic, kind in OTHER_ARCHIVES.items():
        if start.startswith(magic):
            raise UserError(f"{path} is a {kind} archive, which is not read; unpack it and give the folder")
    # A zip is known by its end, so that a tar whose last file is a zip would be taken for that.
    return Tar(path) if start[257:262] == b"ustar" or not zipfile.is_zipfile(path) else Zip(path)


def has_class_folders(container: Container) -> bool:
    """Whether images lie in folders, two at least, as those of classes do: a container of them is an image folder."""
    folders = {PurePosixPath(name).parent for name in container.names if name.lower().endswith(SUFFIXES)}
    return len(folders - {PurePosixPath()}) > 1


def hiding(name: str) -> str | None:
    """The part of a path up to the first name that is hidden or a system's own; None where there is none."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if part.startswith(".") or part in SYSTEM_NAMES:
            return "/".join(parts[: i + 1])
    return None


def packed_in(path: Path) -> dict[str, Any]:
    """What a dataset records of a file that it was made from."""
    return {"kind": "archive", "file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


@dataclass
class Listing:
    """What is in a folder and below it, by paths in it; hidden folders are not looked into.

    Attributes:
        lost: links that lead to a folder above themselves, or nowhere.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def listing(top: Path) -> Listing:
    """List a folder. Links to other folders are followed, but not one to a folder above itself, which would never end.

    Raises:
        UserError: it or a folder in it cannot be read.
    """
    try:
        return _listing(top)
    except OSError as error:
        raise UserError(f"{error.filename or top} cannot be read: {error.strerror}") from None


def _listing(top: Path) -> Listing:
    found = Listing()
    above = [_identity(folder.stat()) for folder in (top.resolve(), *top.resolve().parents)]
    waiting = [("", above)]
    while waiting:
        name, above = waiting.pop()
        with os.scandir(top / name) as entries:
            for entry in entries:
                inner = f"{name}/{entry.name}".lstrip("/")
                try:
                    status = entry.stat()
                except OSError:
                    if not entry.is_symlink():
                        raise
                    found.lost.append(inner)
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.files.append(inner)
                elif stat.S_ISDIR(status.st_mode) and _identity(status) in above:
                    found.lost.append(inner)
                elif stat.S_ISDIR(status.st_mode):
                    found.folders.append(inner)
                    if hiding(entry.name) is None:
                        waiting.append((inner, [*above, _identity(status)]))
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class Folder(Container):
    """See `Container`. `only`: the one file in it that counts."""

    def __init__(self, path: Path, only: Path | None = None) -> None:
        self.folder = path
        found = Listing([only.name]) if only else listing(path)
        self.lost = found.lost
        origin = packed_in(only) if only else {"kind": "folder", "path": str(path)}
        super().__init__(only or path, origin, found.files, found.folders)

    @property
    def remarks(self) -> list[str]:
        """See `Container`."""
        if not self.lost:
            return super().remarks
        why = "because they lead nowhere, or to a folder that they lie in"
        return [*super().remarks, f"links left out, {why}: {len(self.lost)}, such as {min(self.lost)}"]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Container.read`."""
        for name in names:
            try:
                yield name, (self.folder / name).read_bytes()
            except OSError as error:
                raise UserError(f"{self.folder / name} cannot be read: {error.strerror}") from None


class Tar(Container):
    """See `Container`; plain or compressed. It is read once to its very end, where a compressed file has its checksum.

    If several files have one name, the last counts, as when they are unpacked: `tar -u` and `tar -r` append newer ones.
    """

    def __init__(self, path: Path) -> None:
        files: dict[str, int] = {}  # where the last of each name begins
        folders: list[str] = []
        empty = 0
        with open_tar(path) as archive:
            for member in archive:
                name = checked(member.name, path)
                empty = _still_few(empty + (member.size == 0 and not member.isdir()), path)
                if name == ".":  # the folder itself, as `tar cf x.tar .` has it
                    continue
                if member.issym() or member.islnk():
                    raise UserError(f"{path}: {name} is a link; pack it with tar --dereference --hard-dereference")
                if member.isdir():
                    folders.append(name)
                else:
                    files[name] = member.offset
            assert archive.fileobj is not None
            while archive.fileobj.read(1 << 20):
                pass
        self._begins = files
        super().__init__(path, packed_in(path), files, folders)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Container.read`."""
        names = set(names)
        with open_tar(self.path) as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if name in names and member.isfile() and member.offset == self._begins[name]:
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file"
                    yield name, file.read(_bearable(member.size, name, self.path))


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
    """A tar; what is wrong with it while it is read becomes a `UserError`."""
    try:
        with tarfile.open(path, tarinfo=_StrictInfo) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole tar archive ({error}); it may be truncated: download it again"
        ) from None


class Zip(Container):
    """See `Container`. Each file is checked against its checksum as it is read."""

    def __init__(self, path: Path) -> None:
        self._members = {}
        folders = []
        empty = 0
        with _open_zip(path) as archive:
            for member in archive.infolist():
                name = checked(member.filename.replace("\\", "/"), path)
                empty = _still_few(empty + (member.file_size == 0 and not member.is_dir()), path)
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"{path}: {name} is a link; pack it without zip's --symlinks")
                if member.flag_bits & 1:
                    raise UserError(f"{path} is encrypted; unpack it and give the folder")
                if member.is_dir():
                    folders.append(name)
                else:
                    self._members[name] = member
        super().__init__(path, packed_in(path), self._members, folders)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Container.read`."""
        with _open_zip(self.path) as archive:
            for name in names:
                _bearable(self._members[name].file_size, name, self.path)
                yield name, archive.read(self._members[name])


def _still_few(empty: int, path: Path) -> int:
    """How many files without a byte an archive has so far.

    Raises:
        UserError: more than `MOST_EMPTY`.
    """
    if empty > MOST_EMPTY:
        raise UserError(f"{path} holds more than {MOST_EMPTY:,} empty files; pack it again without them")
    return empty


def _bearable(size: int, name: str, path: Path) -> int:
    """The size that an archive says a file has, which is read into memory whole.

    Raises:
        UserError: it is too large for that, whether or not the archive tells the truth.
    """
    if size > LARGEST:
        raise UserError(
            f"{path}: {name} has {size:,} bytes, more than {LARGEST:,}; unpack the archive and give the folder"
        )
    return size


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is not a whole zip archive ({error}); download it again, or unpack it") from None


def checked(name: str, path: Path) -> str:
    """A member's name in plain form.

    Raises:
        UserError: it lies outside of the archive's folder.
    """
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts:
        raise UserError(f"{path} has a member outside of its folder: {name!r}; it is refused whole")
    return str(plain)
