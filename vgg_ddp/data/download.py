"""Downloads the official CIFAR archives: resumable, checked by size and SHA-256, once for all processes of a host.

A mirror may break off, stall, ignore a range request, or send something else. What it sends is appended to `<name>.part`;
the file is renamed once size and SHA-256 are right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from vgg_ddp.errors import UserError
from vgg_ddp.run.files import locked, sync_directory

_BLOCK = 1 << 18  # bytes asked of a socket or a file at once
_BACKOFF_SECONDS = 0.5  # before the second attempt at a mirror; doubles with each further one
_REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class Archive:
    """A published file whose content never changes: `bytes` is its size, `urls` its mirrors in the order to try."""

    name: str
    bytes: int
    sha256: str
    urls: tuple[str, ...]


def _toronto(name: str, size: int, sha256: str, *mirrors: str) -> Archive:
    return Archive(name, size, sha256, (f"https://www.cs.toronto.edu/~kriz/{name}", *mirrors))


# cs.toronto.edu/~kriz/cifar.html gives MD5 sums only; the sha256 of the python archives are those that Keras pins.
_OFFICIAL = (
    _toronto("cifar-10-python.tar.gz", 170498071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    _toronto(
        "cifar-10-binary.tar.gz",
        170052171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        # the copy that Swift for TensorFlow's tests read
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    ),
    _toronto("cifar-100-python.tar.gz", 169001437, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    _toronto("cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
)
ARCHIVES: dict[str, Archive] = {archive.name: archive for archive in _OFFICIAL}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fetch(
    archive: Archive,
    directory: Path,
    *,
    stall_seconds: float = 30,
    connect_seconds: float = 10,
    attempts: int = 3,
    report: Callable[[str], None] = _to_stderr,
) -> Path:
    """The path of `archive` in `directory`, whole and checked; downloads it unless it is there.

    Progress is kept in `<name>.part`, and the next call resumes from it. Of several processes one downloads and the
    others wait for it; their `<name>.lock` stays behind, since removing it could let two of them in.

    Args:
        stall_seconds: longest wait for the next byte.
        connect_seconds: longest wait for a connection to each address of a host (looking up its name not included).
        attempts: requests to one mirror before the next is tried.
        report: takes one line for each mirror, and one of progress at most every two seconds.

    Raises:
        UserError: no mirror gave the file; a file of that name is there and is not the archive; `directory` cannot be
            written, or its disk is full.
    """
    target, part_path = directory / archive.name, directory / f"{archive.name}.part"
    try:
        if _is_there(target, archive):  # before the lock too: the directory may be read-only
            return target
        directory.mkdir(parents=True, exist_ok=True)
        waiting = f"{archive.name}: waiting for another process that downloads it"
        with locked(directory / f"{archive.name}.lock", waiting, report):
            if not _is_there(target, archive):
                with closing(_Part(part_path)) as part:
                    _Download(archive, part, connect_seconds, stall_seconds, attempts, report).run()
                os.replace(part_path, target)
                sync_directory(directory)
    except OSError as error:  # of the disk: _Download handles those of the network
        raise UserError(
            f"cannot keep {archive.name} in {directory}: {error.filename or part_path}: {error.strerror or error}; "
            "set data.directory to one that can be written and has room"
        ) from error
    return target


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _is_there(target: Path, archive: Archive) -> bool:
    if not target.exists():
        return False
    with target.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != archive.bytes or _sha256_of(file).hexdigest() != archive.sha256:
            raise UserError(f"{target} ({size} bytes) is not the official {archive.name}, by size or sha256; delete it")
    return True


def _sha256_of(file: BinaryIO) -> hashlib._Hash:
    sha256 = hashlib.sha256()
    while block := file.read(_BLOCK):
        sha256.update(block)
    return sha256


class _Part:
    """The unfinished file, hashed as it is written.

    The first `inherited` bytes came before the present mirror's, and are kept when that mirror sends something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b")
        self.inherited = os.fstat(self._file.fileno()).st_size
        self.cut(self.inherited)

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        self._file.truncate(size)
        self._file.seek(0)
        self.sha256 = _sha256_of(self._file)
        self.size, self.inherited = size, min(size, self.inherited)

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self.sha256.update(block)
        self.size += len(block)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self.size == 0:
            self._path.unlink()


class _Failure(Exception):
    """A mirror broke off, stalled or could not be reached: worth another attempt."""


class _WrongContent(Exception):
    """A mirror sends something else: its bytes are dropped, and the next mirror is tried."""


def _opener(stall_seconds: float) -> urllib.request.OpenerDirector:
    """urllib has one timeout, for the connection and for every wait after it; this gives the waits their own."""

    class HTTP(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(stall_seconds)

    class HTTPS(HTTP, http.client.HTTPSConnection):
        pass

    class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(HTTP, req)

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(HTTPS, req)

    return urllib.request.build_opener(Handler())


@dataclass
class _Download:
    archive: Archive
    part: _Part
    connect_seconds: float
    stall_seconds: float
    attempts: int
    report: Callable[[str], None]

    def run(self) -> None:
        """Complete the part and sync it to disk.

        Raises:
            UserError: no mirror gives the file.
        """
        archive, part, failures = self.archive, self.part, []
        if part.size > archive.bytes:
            part.cut(0)
        for url in archive.urls:
            self.report(f"{archive.name}: from {url}")
            part.inherited = part.size
            try:
                self._from_mirror(url)
                return part.sync()
            except (_Failure, _WrongContent) as failure:
                if isinstance(failure, _WrongContent):
                    part.cut(part.inherited)
                failures.append(f"{url}: {failure}")
        kept = f"run again to go on from {_mb(part.size)} of {_mb(archive.bytes)} MB, or " if part.size else ""
        raise UserError(
            f"cannot download {archive.name}: {'; '.join(failures)}; {kept}download it by hand and give its path as "
            "data.source"
        )

    def _from_mirror(self, url: str) -> None:
        failure: _Failure | None = None
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            try:
                if self.part.size < self.archive.bytes:
                    self._receive(url)
            except _Failure as caught:
                failure = caught
            if self.part.size == self.archive.bytes:
                return self._check(url)
        raise _Failure(f"{failure} (attempts: {self.attempts})")

    def _check(self, url: str) -> None:
        found, inherited = self.part.sha256.hexdigest(), self.part.inherited
        if found == self.archive.sha256:
            return
        self.part.cut(0)
        if not inherited:
            raise _WrongContent(f"sent other bytes (sha256 {found})")
        self._from_mirror(url)  # once more, from zero: the wrong bytes may be another mirror's or an old part's

    def _receive(self, url: str) -> None:
        """One request: appends to the part what the mirror sends, up to the end or a failure."""
        archive, part = self.archive, self.part
        with self._ask(url, part.size) as response:
            self._agree(response)
            undeclared = response.length is None  # then read to the end: the first byte too many gives it away
            told, told_at = part.size, time.monotonic()
            while part.size < archive.bytes or undeclared:
                with self._network_failures():  # read1, for read drops what came before a stall
                    block = response.read1(min(archive.bytes - part.size + undeclared, _BLOCK))
                if not block:
                    break
                if part.size + len(block) > archive.bytes:
                    raise _WrongContent(f"sent more than {archive.bytes} bytes")
                part.append(block)
                seconds = time.monotonic() - told_at
                if seconds >= _REPORT_SECONDS:
                    speed = _mb((part.size - told) / seconds)
                    self.report(f"{archive.name}: {_mb(part.size)} of {_mb(archive.bytes)} MB, {speed} MB/s")
                    told, told_at = part.size, time.monotonic()
            if part.size < archive.bytes:
                if response.chunked:  # a chunked body that breaks off raises in read1: this one ended in order
                    raise _WrongContent(f"sent {part.size} bytes, not {archive.bytes}")
                raise _Failure(f"broke off at {part.size} of {archive.bytes} bytes")

    def _ask(self, url: str, offset: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": "vgg-ddp"} | ({"Range": f"bytes={offset}-"} if offset else {})
        request = urllib.request.Request(url, headers=headers)
        try:
            with self._network_failures():
                opener = _opener(self.stall_seconds)
                return cast(http.client.HTTPResponse, opener.open(request, timeout=self.connect_seconds))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and offset:  # it has nothing from there on, or no ranges: the whole file will tell
                return self._ask(url, 0)
            raise _Failure(f"HTTP {error.code}") from error

    def _agree(self, response: http.client.HTTPResponse) -> None:
        """Check the headers of a response against the request; empty the part when the mirror sends the file from its start."""
        start, total = 0, response.length
        if response.status == 206:
            said = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", response.headers.get("Content-Range", ""))
            if said is None or int(said[1]) != self.part.size:
                raise _WrongContent("sent another range than it was asked for")
            start, total = self.part.size, None if said[2] == "*" else int(said[2])
        elif response.status != 200:
            raise _Failure(f"HTTP {response.status}")
        if total is not None and total != self.archive.bytes:
            raise _WrongContent(f"offers {total} bytes, not {self.archive.bytes}")
        if start + (response.length or 0) > self.archive.bytes:
            raise _WrongContent(f"offers more than {self.archive.bytes} bytes")
        if start == 0:  # only now that the size is right: a login page in the file's place must not cost the progress
            self.part.cut(0)

    @contextmanager
    def _network_failures(self) -> Iterator[None]:
        """Turn network errors, except HTTP status codes, into `_Failure`, so that any other OSError is of the disk."""
        try:
            yield
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise _Failure(f"no connection: {error.reason}") from error
        except TimeoutError as error:
            raise _Failure(f"stalled: no byte for {self.stall_seconds:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Failure(f"broke off: {type(error).__name__} {error}") from error
