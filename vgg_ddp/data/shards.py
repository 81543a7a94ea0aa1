"""Writes WebDataset tar shards and the index of where each sample lies."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import numpy as np

from vgg_ddp.data.splits import CHECKSUMS, checksum

SHARD_BYTES = 256 * 2**20


class ShardWriter:
    """Writes a split's images into tar shards of about SHARD_BYTES, and the index of where each lies, by key."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._files: list[str] = []
        self._tar: tarfile.TarFile | None = None
        self._rows: list[tuple[bytes, int, int, int, int, int, int, int]] = []

    @property
    def classes(self) -> list[int]:
        """The class of each sample so far."""
        return [row[4] for row in self._rows]

    def add(self, key: str, label: int, data: bytes, suffix: str, shape: tuple[int, int]) -> None:
        """Append a sample: its path in the source, its class, its file and the format's suffix, its height and width."""
        if self._tar is None or self._tar.offset > SHARD_BYTES:
            self._open_next()
        assert self._tar is not None
        stem = f"{len(self._rows):08d}"
        offset = self._add(f"{stem}.{suffix}", data)
        self._add(f"{stem}.cls", str(label).encode())
        total = checksum(np.frombuffer(data, np.uint8))
        self._rows.append((key.encode(), len(self._files) - 1, offset, len(data), label, *shape, total))

    def close(self) -> list[str]:
        """Write the index, sorted by key so that it does not depend on the source's order; all files' names."""
        if self._tar is not None:
            self._tar.close()
        self._rows.sort()
        key, shard, offset, size, label, height, width, checksums = zip(*self._rows)
        self.labels = np.array(label, dtype=np.int64)
        self.shapes = np.array([height, width], dtype=np.int64).T
        name = f"{self._split}.index.npz"
        np.savez(
            self._folder / name,
            key=np.array(key, dtype=bytes),
            shard=np.array(shard),
            offset=np.array(offset),
            size=np.array(size),
            label=self.labels,
            height=np.array(height),
            width=np.array(width),
        )
        sums = f"{self._split}{CHECKSUMS}"
        np.save(self._folder / sums, np.array(checksums, dtype=np.uint64))
        return [*self._files, name, sums]

    def abandon(self) -> None:
        """Let go of the shard as it is; does nothing after `close`."""
        if self._tar is not None and self._tar.fileobj is not None:
            with contextlib.suppress(OSError):
                self._tar.fileobj.close()

    def _open_next(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._files.append(f"{self._split}-{len(self._files):05d}.tar")
        self._tar = tarfile.open(self._folder / self._files[-1], "w", format=tarfile.USTAR_FORMAT)

    def _add(self, name: str, data: bytes) -> int:
        """Append a member; where its data begins."""
        assert self._tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        start = self._tar.offset
        self._tar.addfile(member, io.BytesIO(data))
        return start + tarfile.BLOCKSIZE
