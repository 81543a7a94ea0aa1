"""The official CIFAR-10 and CIFAR-100 archives (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

Formats: https://www.cs.toronto.edu/~kriz/cifar.html. The "python" version is made of pickles; they are read by a reader
that can build lists, dicts, bytes, numbers and byte arrays, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.data.download import ARCHIVES
from vgg_ddp.data.sources.containers import Container, Folder, Tar, has_class_folders
from vgg_ddp.data.sources.source import Pixels, PixelSource
from vgg_ddp.errors import UserError

GROUPS_CIFAR10 = {
    "vehicles": ["airplane", "automobile", "ship", "truck"],
    "animals": ["bird", "cat", "deer", "dog", "frog", "horse"],
}
NAMES_CIFAR10 = sorted(name for names in GROUPS_CIFAR10.values() for name in names)
NAMES_CIFAR100 = (  # noqa: SIM905
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
).split()


@dataclass(frozen=True)
class Layout:
    """One of the four archives: its folder, its files, and the keys in them."""

    name: str
    folder: str
    splits: dict[str, tuple[str, ...]]
    names_file: str
    names_key: bytes
    labels_key: bytes
    groups_file: str  # "" where there are none
    label_bytes: int  # before each image, in the binary version; the last of them is the class, the first the group


_TRAIN10 = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = (
    Layout("CIFAR-10", "cifar-10-batches-py", {"train": _TRAIN10, "test": ("test_batch",)}, "batches.meta", b"label_names", b"labels", "", 0),  # noqa: E501
    Layout("CIFAR-10", "cifar-10-batches-bin", {"train": tuple(f"{n}.bin" for n in _TRAIN10), "test": ("test_batch.bin",)}, "batches.meta.txt", b"", b"", "", 1),  # noqa: E501
    Layout("CIFAR-100", "cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", b"fine_label_names", b"fine_labels", "meta", 0),  # noqa: E501
    Layout("CIFAR-100", "cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", b"", b"", "coarse_label_names.txt", 2),  # noqa: E501
)  # fmt: skip


def find(container: Container) -> PixelSource | None:
    """The official archive, packed or unpacked; None where there is none, or where it only lies among folders of images.

    Raises:
        UserError: a file of it is missing, or not what the format says; or there are several.
    """
    if has_class_folders(container):
        return None
    found = {
        _folder_of(name): layout for layout in LAYOUTS for name in container.names if _begins(layout, name, container)
    }
    if not found:
        return _packed_in(container)
    if len(found) > 1:
        raise UserError(f"{container.path} holds several sets: {', '.join(sorted(found))}; give one of them")
    ((folder, layout),) = found.items()
    classes, groups, splits = read(container, folder, layout)
    return PixelSource(
        layout.name, classes, groups, splits, container.origin, str(container.path), tuple(container.remarks)
    )


def _folder_of(name: str) -> str:
    """The folder that a file lies in, with a slash; "" at the top."""
    return name[: name.rfind("/") + 1]


def _begins(layout: Layout, name: str, container: Container) -> bool:
    """Whether a file shows this layout: it lies in a folder of its name, whatever wraps that."""
    folder = _folder_of(name).rstrip("/").rpartition("/")[2] or container.path.name
    return folder == layout.folder


def _packed_in(container: Container) -> PixelSource | None:
    """The official archive in a folder that it was downloaded to."""
    packed = [name for name in container.names if name.rpartition("/")[2] in ARCHIVES]
    if len(packed) != 1 or not isinstance(container, Folder):
        return None
    return find(Tar(container.folder / packed[0]))


def read(
    container: Container, folder: str, layout: Layout
) -> tuple[list[str], dict[str, list[str]], dict[str, Pixels]]:
    """Class names, their groups and the splits of an official archive: files in `folder`, read from an allow-list.

    Raises:
        UserError: a file missing, or not what the format says.
    """
    path = container.path
    wanted = [file for files in (*layout.splits.values(), (layout.names_file,)) for file in files]
    missing = sorted(folder + file for file in wanted if folder + file not in container.names)
    if missing:
        raise UserError(f"{path} lacks {missing[0]}: it is not the official {layout.name} archive; download it again")
    if layout.groups_file not in ("", *wanted) and folder + layout.groups_file in container.names:
        wanted.append(layout.groups_file)  # copies of the archive may lack it
    contents = {name.removeprefix(folder): data for name, data in container.read([folder + file for file in wanted])}
    parse = _binary if layout.label_bytes else _python
    try:
        names = _class_names(contents[layout.names_file], layout)
        groups = GROUPS_CIFAR10 if layout.name == "CIFAR-10" else _groups(contents, names, layout)
        splits = {}
        for split, files in layout.splits.items():
            batches = [parse(contents[file], layout) for file in files]
            if any(len(pixels) != len(labels) or not len(labels) for pixels, labels in batches):
                raise ValueError(f"labels and images of {split} do not match")
            labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
            pixels = np.concatenate([pixels for pixels, _ in batches])
            if not 0 <= labels.min() <= labels.max() < len(names):
                raise ValueError(f"labels and images of {split} do not match")
            images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            splits[split] = Pixels(images, labels)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not in the {layout.name} format: {error}; download it again") from None
    return names, groups, splits


def _class_names(data: bytes, layout: Layout) -> list[str]:
    if layout.label_bytes:
        return data.decode("ascii").split()
    return [_text(name) for name in read_plain_pickle(data)[layout.names_key]]


def _groups(contents: dict[str, bytes], names: list[str], layout: Layout) -> dict[str, list[str]]:
    """The classes of each of CIFAR-100's 20 groups, told by its training images; none where the archive does not name them.

    Raises:
        ValueError: an image of a class in one group and an image of it in another.
    """
    if layout.groups_file not in contents:
        return {}
    (training,) = layout.splits["train"]
    if layout.label_bytes:
        called = contents[layout.groups_file].decode("ascii").split()
        records = np.frombuffer(contents[training], np.uint8).reshape(-1, layout.label_bytes + 3072)
        pairs = records[:, : layout.label_bytes].astype(np.int64)
    else:
        meta, batch = (read_plain_pickle(contents[file]) for file in (layout.groups_file, training))
        called = [_text(name) for name in meta[b"coarse_label_names"]]
        pairs = np.array([batch[b"coarse_labels"], batch[layout.labels_key]], dtype=np.int64).T
    group_of = dict(np.unique(pairs, axis=0)[:, ::-1].tolist())
    if len(group_of) < len(np.unique(pairs, axis=0)):
        raise ValueError("images of one class lie in two groups")
    return {
        name: members
        for number, name in enumerate(called)
        if (members := [names[k] for k in sorted(group_of) if group_of[k] == number])
    }


def _text(name: bytes | str) -> str:
    if not isinstance(name, bytes | str):
        raise ValueError(f"a class is called {name!r}")
    return name.decode("ascii") if isinstance(name, bytes) else name


def _binary(data: bytes, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    records = np.frombuffer(data, np.uint8).reshape(-1, layout.label_bytes + 3072)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _python(data: bytes, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = read_plain_pickle(data)
    labels = np.array(batch[layout.labels_key])
    if labels.dtype.kind != "i" or labels.ndim != 1:
        raise ValueError("labels that are not whole numbers")
    return batch[b"data"].array().reshape(-1, 3072), labels


class _ArrayRecord:
    """The content of a pickled array, without building one: shape, type and bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def array(self) -> NDArray[np.uint8]:
        if (
            not isinstance(self.dtype, _TypeRecord)
            or self.dtype.code not in (b"u1", "u1")
            or not isinstance(self.data, bytes)
        ):
            raise ValueError("an array that is not of bytes")
        flat = np.frombuffer(self.data, np.uint8)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class _TypeRecord:
    """The content of a pickled array type."""

    def __init__(self, code: bytes | str = b"", *rest: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*arguments: object) -> _ArrayRecord:
    return _ArrayRecord()


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 pickles bytes under protocol 2


_BUILDERS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ArrayRecord,
    ("numpy", "dtype"): _TypeRecord,
    ("_codecs", "encode"): _latin1,
}


class _PlainReader(pickle.Unpickler):
    """Builds plain values. A name that is not in `_BUILDERS` raises before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            builder: Any = _BUILDERS[module, name]
            return lambda *arguments: builder(*arguments)  # a new one: BUILD can change what it is given
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no data set needs") from None


def read_plain_pickle(data: bytes) -> Any:
    """The plain values in a pickle; arrays come as records of their bytes.

    Raises:
        pickle.UnpicklingError: the data names anything else, or is not a pickle.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):  # finds what is broken before anything is built
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise ValueError("a place in the memo that no value needs")
    except Exception as error:
        raise pickle.UnpicklingError(f"not a whole pickle: {error}") from None
    return _PlainReader(io.BytesIO(data), encoding="bytes").load()
