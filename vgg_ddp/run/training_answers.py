"""RUN/answers: how each training image was answered as it was trained on, a file an epoch.

epoch-00001.safetensors and so on: `answers`, float16 [2, images of the split], the margin and the probability of the label;
not a number where an image was not trained on in that epoch, or held out for validation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from vgg_ddp.errors import Damaged
from vgg_ddp.run.directory import RunDirectory

LARGEST = float(np.finfo(np.float16).max)


def write_epoch(run: RunDirectory, epoch: int, answers: NDArray[np.float32]) -> None:
    """Write the answers [2, images] of an epoch, counted from zero.

    Raises:
        UserError: the disk is full or read-only.
    """
    values = np.clip(answers, -LARGEST, LARGEST).astype(np.float16)
    run.write_bytes(run.answers / _name(epoch), safetensors.numpy.save({"answers": values}))


def read_epochs(run: RunDirectory, images: int) -> Iterator[NDArray[np.float32]]:
    """The answers [2, images] of each epoch in turn, from the first to the first that is missing.

    Raises:
        Damaged: a file is not what `write_epoch` wrote, of so many images.
    """
    epoch = 0
    while (path := run.answers / _name(epoch)).is_file():
        try:
            answers = safetensors.numpy.load(path.read_bytes())["answers"]
            if answers.dtype != np.float16 or answers.shape != (2, images):
                raise ValueError(f"it holds {answers.dtype} {list(answers.shape)} for {images} images")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise Damaged(f"{path} is damaged: {error}; remove the folder {run.answers} to do without") from None
        yield answers.astype(np.float32)
        epoch += 1


def keep_until(run: RunDirectory, epoch: int) -> None:
    """Remove the answers of the epochs from `epoch` on, which a training that continues there will repeat."""
    kept = {_name(earlier) for earlier in range(epoch)}
    for path in run.answers.glob("epoch-*.safetensors"):
        if path.name not in kept:
            path.unlink()


def _name(epoch: int) -> str:
    return f"epoch-{epoch + 1:05d}.safetensors"
