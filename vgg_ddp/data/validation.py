"""Which images a training is validated on: the data set's own validation split, or a share of its training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.config import Config
from vgg_ddp.config.rules import key_that_needs_validation
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import stratified_split
from vgg_ddp.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """Images that are not trained on: indices into the split of this name, int64[n]."""

    split: str
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)


def held_out(dataset: Dataset, share: float, seed: int) -> tuple[NDArray[np.int64], HeldOut]:
    """Indices into the train split to train on, and the images to validate on.

    Args:
        share: of the training images, where the data set has no validation split; 0 holds none out, of its own either.
        seed: draws that share.
    """
    labels = dataset.split("train").labels
    if share and "validation" in dataset.record.splits:
        own = HeldOut("validation", np.arange(dataset.record.splits["validation"].count))
        return np.arange(len(labels)), own
    train, validation = stratified_split(labels, share, seed)
    return train, HeldOut("train", validation)


def check_validation(config: Config, dataset: Dataset) -> None:
    """Raises a `UserError` where a key needs images to validate on, and the share to hold out of each class is none."""
    needing, share = key_that_needs_validation(config), config.data.validation
    if needing and not len(held_out(dataset, share, config.seed)[1]):
        raise UserError(
            f"{needing} needs images to validate on, and {share:.2%} of each class of {dataset.name} are none; raise "
            "data.validation"
        )
