"""How the samples of a prepared dataset are read.

Two storages. `raw`: decoded pixels, `SPLIT.images.npy` (uint8, n x height x width x 3) and `SPLIT.labels.npy`. `encoded`:
image files, the source's own or made from it, in WebDataset tar shards (`SPLIT-00000.tar`) with an index
(`SPLIT.index.npz`) of where each sample lies. Both are memory-mapped, and have a checksum for each sample
(`SPLIT.checksums.npy`); a sample's index is its place in the split.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.data.decoding import decode_image
from vgg_ddp.errors import UserError

CHECKSUMS = ".checksums.npy"  # uint64 a sample; in data sets of earlier versions there are none
SMALL = 8192  # bytes: batches of image files up to this size are copied into one array


class RawSplit:
    """A split of decoded pixels of one size.

    Args:
        check: compare pixels with their checksums, if any, as they are read; for a set too large to verify at start.
    """

    def __init__(self, directory: Path, name: str, check: bool = False) -> None:
        self.name = name
        file = directory / f"{name}{CHECKSUMS}"
        self._checksums: NDArray[np.uint64] | None = np.load(file) if check and file.is_file() else None
        # Copy on write: nothing writes, and torch warns of memory that it may not.
        self.images: NDArray[np.uint8] = np.load(directory / f"{name}.images.npy", mmap_mode="c")
        self.labels: NDArray[np.int64] = np.load(directory / f"{name}.labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def uniform_shape(self) -> tuple[int, int] | None:
        """Height and width of every image, pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def decoded_bytes(self) -> int | None:
        """Bytes of all images, decoded."""
        return self.images.nbytes

    def shapes(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Heights and widths of the samples, int64 [n, 2]."""
        return np.broadcast_to(np.array(self.images.shape[1:3]), (len(samples), 2))

    def pixels(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels of samples, uint8 [n, height, width, 3].

        Raises:
            UserError: some are not those that were stored.
        """
        images = self.images[samples]
        self._compare(images, samples)
        return images

    def compare(self, samples: NDArray[np.int64]) -> None:
        """Raises a `UserError` if pixels of the samples are not those that were stored, where they are to be checked."""
        for start in range(0, len(samples) if self._checksums is not None else 0, 1000):
            self.pixels(samples[start : start + 1000])

    def _compare(self, images: NDArray[np.uint8], samples: NDArray[np.int64]) -> None:
        if self._checksums is not None:
            differ = checksums(images) != self._checksums[samples]
            if differ.any():
                raise _not_stored(self, int(samples[differ.argmax()]))

    def decode(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one sample, uint8 height x width x 3.

        Raises:
            UserError: they are not those that were stored.
        """
        image = np.asarray(self.images[index])
        self._compare(image[None], np.array([index]))
        return image

    def key(self, index: int) -> str:
        """A name for the sample in messages."""
        return f"{self.name}/{index}"


def checksums(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """`checksum` of the bytes of each image [n, ...]: uint64 [n]."""
    rows = images.reshape(len(images), -1)
    size = rows.shape[1]
    padded = rows if size % 8 == 0 else np.pad(rows, ((0, 0), (0, -size % 8)))
    return np.ascontiguousarray(padded).view(np.uint64).sum(axis=1, dtype=np.uint64) + np.uint64(size)


def checksum(data: NDArray[np.uint8]) -> int:
    """The sum of a file's words of eight bytes, the last filled with zeros, and of its length: uint64.

    Any change of one bit, byte or word shows. At 9 microseconds for 110 KB it costs less than 1 % of decoding them.
    """
    whole = len(data) // 8 * 8
    rest = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(np.add.reduce(data[:whole].view(np.uint64))) + rest + len(data)) % 2**64


class EncodedSplit:
    """A split of image files in tar shards."""

    def __init__(self, directory: Path, name: str, shards: list[str]) -> None:
        self.name = name
        with (directory / f"{name}.index.npz").open("rb") as packed, np.load(packed) as index:
            self.labels: NDArray[np.int64] = index["label"]
            self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
            self._shapes = np.stack([index["height"], index["width"]], axis=1)
            self._key = index["key"]
        file = directory / f"{name}{CHECKSUMS}"
        self._checksums: NDArray[np.uint64] | None = np.load(file) if file.is_file() else None
        maps = (np.memmap(directory / shard, dtype=np.uint8, mode="r") for shard in shards)
        self._shards = [np.asarray(shard) for shard in maps]  # plain arrays: a slice of one costs a tenth

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def uniform_shape(self) -> tuple[int, int] | None:
        """Height and width of every image, pixels; None where they differ."""
        first = self._shapes[0]
        return (int(first[0]), int(first[1])) if (self._shapes == first).all() else None

    @property
    def decoded_bytes(self) -> int | None:
        """Bytes of all images, decoded; None where they differ in size."""
        return None if self.uniform_shape is None else int(3 * self._shapes.prod(axis=1).sum())

    def shapes(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Heights and widths of the samples, int64 [n, 2]."""
        return self._shapes[samples]

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The stored bytes of one sample, a view of the mapped shard.

        Raises:
            UserError: they are not those that were stored.
        """
        offset = self._offset[index]
        data = self._shards[self._shard[index]][offset : offset + self._size[index]]
        if self._checksums is not None and checksum(data) != self._checksums[index]:
            raise _not_stored(self, index)
        return data

    def encoded_batch(self, samples: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """The stored bytes of samples: small files as rows of one array with zeros behind each, large ones in a list.

        Handing over one array takes a third of the time of decoding a file of 1 KB; handing over 256, twice that time.
        """
        sizes = self._size[samples]
        longest = int(sizes.max(initial=1))
        if longest > SMALL:
            return [self.encoded(int(sample)) for sample in samples]
        rows = np.zeros((len(samples), -(-longest // 8) * 8), dtype=np.uint8)
        for row, shard, offset, size in zip(
            rows, self._shard[samples].tolist(), self._offset[samples].tolist(), sizes.tolist()
        ):
            row[:size] = self._shards[shard][offset : offset + size]
        if self._checksums is not None:
            differ = rows.view(np.uint64).sum(axis=1) + sizes.astype(np.uint64) != self._checksums[samples]
            if differ.any():
                raise _not_stored(self, int(samples[differ.argmax()]))
        return rows

    def decode(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one sample, uint8 height x width x 3 (see `decode_image`).

        Raises:
            UserError: naming a sample that cannot be decoded.
        """
        data = self.encoded(index).tobytes()
        try:
            return decode_image(data)
        except Exception as error:
            raise UserError(
                f"sample {index} ({self.key(index)}) cannot be decoded: {error}; run 'vgg-ddp verify'"
            ) from None

    def key(self, index: int) -> str:
        """The path that the sample had in its source."""
        return bytes(self._key[index]).decode()


Split = RawSplit | EncodedSplit


def _not_stored(split: Split, index: int) -> UserError:
    return UserError(f"sample {index} ({split.key(index)}) is not what was stored; run 'vgg-ddp verify'")
