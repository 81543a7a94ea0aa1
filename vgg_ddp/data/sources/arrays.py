"""Images in a NumPy archive (.npz): arrays x_train and y_train as Keras names them, or train_images as MedMNIST does."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.data.sources.cifar import NAMES_CIFAR10, NAMES_CIFAR100
from vgg_ddp.data.sources.class_folders import groups_of, stem
from vgg_ddp.data.sources.containers import Container, Folder, has_class_folders
from vgg_ddp.data.sources.source import SPLITS, Pixels, PixelSource
from vgg_ddp.data.sources.splitting import must_be_several
from vgg_ddp.errors import UserError

KEYS = {"train": ("x_train", "train_images"), "validation": ("x_val", "val_images"), "test": ("x_test", "test_images")}
LABELS = {"x_": "y_", "_images": "_labels"}  # what the array of labels has in its name in place of what


def find(container: Container) -> PixelSource | None:
    """The arrays of the one .npz file in `container`; None where there is none, or several.

    None too where it holds other arrays and lies beside an image folder.

    Raises:
        UserError: it holds no images, or arrays that do not go together.
    """
    names = [name for name in container.names if name.lower().endswith(".npz")]
    if len(names) != 1 or not isinstance(container, Folder):
        return None
    path = container.folder / names[0]
    try:
        # numpy leaves a file that it opened itself open where it turns out damaged
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            chosen = {split: next((key for key in KEYS[split] if key in arrays), None) for split in SPLITS}
            if chosen["train"] is None and has_class_folders(container):
                return None  # it only lies beside them
            if chosen["train"] is None:
                raise UserError(f"{path} has the arrays {', '.join(arrays)}, and not x_train and y_train")
            splits = {s: _pixels(arrays[key], arrays[_label_key(key)]) for s, key in chosen.items() if key is not None}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an archive of images and labels: {error}") from None
    count = 1 + max(int(pixels.labels.max()) for pixels in splits.values())
    classes = _names(stem(container), count)
    must_be_several(classes, path)
    return PixelSource(
        stem(container), classes, groups_of(classes), splits, container.origin, str(path), tuple(container.remarks)
    )


def _label_key(key: str) -> str:
    for mark, other in LABELS.items():
        key = key.replace(mark, other)
    return key


def _pixels(images: NDArray[np.generic], labels: NDArray[np.generic]) -> Pixels:
    """Images [n, height, width, 3] from colour or grey ones, channels last or first; labels [n] from [n] or [n, 1]."""
    if images.dtype != np.uint8:
        raise ValueError(f"its images are {images.dtype}, not uint8")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"its images have the shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.size != len(images) or not labels.size or labels.min() < 0:
        raise ValueError("its labels are not one whole number for each image")
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return Pixels(np.ascontiguousarray(images, dtype=np.uint8), labels.reshape(-1).astype(np.int64))


def _names(name: str, count: int) -> list[str]:
    """CIFAR's class names if the file is named after it, else numbers: such a file has no class names of its own."""
    if "cifar" in name.lower():
        for names in (NAMES_CIFAR10, NAMES_CIFAR100):
            if len(names) == count:
                return list(names)
    return [str(i) for i in range(count)]
