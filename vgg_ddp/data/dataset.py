"""A prepared dataset on disk: what dataset.json says, and how its samples are read.

Two storages. `raw`: decoded pixels, `SPLIT.images.npy` (uint8, n x height x width x 3) and `SPLIT.labels.npy`. `encoded`:
image files, the source's own or made from it, in WebDataset tar shards (`SPLIT-00000.tar`) with an index
(`SPLIT.index.npz`) of where each sample lies. Both are memory-mapped; a sample's index is its place in the split.
"""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vgg_ddp.errors import UserError

FORMAT_VERSION = 2
SMALL = 8192  # bytes: batches of image files up to this size are copied into one array


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a dataset: its name in the dataset's directory, size and hash."""

    name: str
    bytes: int
    sha256: str


class SplitRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A split: its images, in all and of each class, and its files."""

    count: int
    class_counts: list[int]
    files: list[FileRecord]


class DatasetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """dataset.json. `mean`, `std` and `covariance` are of the train split's channels, in units of 0 to 255."""

    format_version: int = FORMAT_VERSION
    name: str
    classes: list[str]
    groups: dict[str, list[str]]
    storage: Literal["raw", "encoded"]
    encoding: dict[str, Any] | None  # of images that were encoded here, and how far that is from their source
    image_shape: list[int] | None  # height, width, channels; None where images differ in size
    mean: list[float]
    std: list[float]
    covariance: list[list[float]]
    splits: dict[str, SplitRecord]
    source: dict[str, Any]
    notes: list[str]  # on images that are unusual, or were left out


class Dataset:
    """A prepared dataset opened for reading.

    Raises:
        UserError: no dataset in the directory, a file of it missing or of the wrong size.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "dataset.json"
        try:
            self.record = msgspec.json.decode(path.read_bytes(), type=DatasetRecord)
        except FileNotFoundError:
            raise UserError(
                f"{directory} is not a prepared dataset: it has no dataset.json; run 'vgg-ddp prepare'"
            ) from None
        except (msgspec.DecodeError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); prepare the dataset again") from None
        if self.record.format_version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format {self.record.format_version}, this version reads {FORMAT_VERSION}; prepare it again"
            )
        for split in self.record.splits.values():
            for file in split.files:
                stored = self.directory / file.name
                if not stored.is_file() or stored.stat().st_size != file.bytes:
                    raise UserError(f"{stored} is missing or truncated; prepare the dataset again")
        self._splits: dict[str, Split] = {}

    @property
    def name(self) -> str:
        """What the dataset is called, e.g. "CIFAR-10"."""
        return self.record.name

    @property
    def classes(self) -> list[str]:
        """The names of the classes, by label."""
        return self.record.classes

    @cached_property
    def sha256(self) -> str:
        """One hash over the hashes of all files: the identity of the data."""
        lines = [f"{f.name} {f.sha256}" for s in sorted(self.record.splits) for f in self.record.splits[s].files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """The split called `name`: the same object each time, so that its decoded pixels can be cached by it."""
        if name not in self._splits:
            self._splits[name] = EncodedSplit(self, name) if self.record.storage == "encoded" else RawSplit(self, name)
        return self._splits[name]

    def verify(self) -> int:
        """Check every file against its hash; the number of files checked.

        Raises:
            UserError: naming the first file that differs.
        """
        files = [file for split in self.record.splits.values() for file in split.files]
        for file in files:
            if file_sha256(self.directory / file.name) != file.sha256:
                raise UserError(
                    f"{self.directory / file.name} is not what was prepared (sha256 differs); prepare it again"
                )
        return len(files)


class RawSplit:
    """A split of decoded pixels of one size."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.name = name
        # Copy on write: nothing writes, and torch warns of memory that it may not.
        self.images: NDArray[np.uint8] = np.load(dataset.directory / f"{name}.images.npy", mmap_mode="c")
        self.labels: NDArray[np.int64] = np.load(dataset.directory / f"{name}.labels.npy")

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

    def decode(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one sample, uint8 height x width x 3."""
        return np.asarray(self.images[index])

    def key(self, index: int) -> str:
        """A name for the sample in messages."""
        return f"{self.name}/{index}"


class EncodedSplit:
    """A split of JPEG or PNG bytes in tar shards."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.name = name
        with np.load(dataset.directory / f"{name}.index.npz") as index:
            self.labels: NDArray[np.int64] = index["label"]
            self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
            self._shapes = np.stack([index["height"], index["width"]], axis=1)
            self._key = index["key"]
        shards = [f.name for f in dataset.record.splits[name].files if f.name.endswith(".tar")]
        maps = (np.memmap(dataset.directory / shard, dtype=np.uint8, mode="r") for shard in sorted(shards))
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
        """The stored bytes of one sample, a view of the mapped shard."""
        offset = self._offset[index]
        return self._shards[self._shard[index]][offset : offset + self._size[index]]

    def encoded_batch(self, samples: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """The stored bytes of samples: small files as rows of one array with zeros behind each, large ones in a list.

        To hand over one array takes a third of the time that decoding a file of 1 KB does; to hand over 256, twice that.
        """
        sizes = self._size[samples]
        longest = int(sizes.max(initial=1))
        if longest > SMALL:
            return [self.encoded(int(sample)) for sample in samples]
        rows = np.zeros((len(samples), longest), dtype=np.uint8)
        for row, shard, offset, size in zip(
            rows, self._shard[samples].tolist(), self._offset[samples].tolist(), sizes.tolist()
        ):
            row[:size] = self._shards[shard][offset : offset + size]
        return rows

    def decode(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one sample, uint8 height x width x 3, decoded by Pillow (libjpeg-turbo).

        Raises:
            UserError: naming a sample that cannot be decoded.
        """
        try:
            return decode_image(self.encoded(index).tobytes())
        except Exception as error:
            raise UserError(
                f"sample {index} ({self.key(index)}) cannot be decoded: {error}; run 'vgg-ddp verify'"
            ) from None

    def key(self, index: int) -> str:
        """The path that the sample had in its source."""
        return bytes(self._key[index]).decode()


Split = RawSplit | EncodedSplit


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """The RGB pixels of a JPEG, PNG or JPEG 2000 file, uint8 height x width x 3, upright as its EXIF data says.

    Raises:
        Exception: whatever Pillow raises for a broken file.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "JPEG2000"))
    except UnidentifiedImageError:
        raise ValueError("it is no JPEG or PNG file") from None
    with opened as image:
        if image.format == "PNG" and b"IEND\xaeB`\x82" not in data:  # Pillow alone does not look
            raise ValueError("image file is truncated")
        upright = ImageOps.exif_transpose(image) if image.getexif() else image
        if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            grey = (np.asarray(upright).astype(np.float64) / 257).round().astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
