"""Which images a training is validated on: the data set's own validation split, or a share of its training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.rules import key_that_needs_validation
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import stratified_split
from vgg_ddp.data.record import DatasetRecord
from vgg_ddp.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """Images that are not trained on: indices into the split of this name, int64[n]."""

    split: str
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)


def held_out(dataset: Dataset, config: DataConfig, seed: int) -> tuple[NDArray[np.int64], HeldOut]:
    """Indices into the train split to train on, and the images to validate on.

    Args:
        config: `train_share` of the training images are used; `validation` of these are held out, unless the data set has a
            validation split of its own; with `validation` 0, neither is used for validation.
        seed: draws those that are held out.
    """
    labels = dataset.split("train").labels
    _, used = stratified_split(labels, config.train_share, config.split_seed)
    if config.validation and "validation" in dataset.record.splits:
        return used, HeldOut("validation", np.arange(dataset.record.splits["validation"].count))
    train, validation = stratified_split(labels[used], config.validation, seed)
    return used[train], HeldOut("train", used[validation])


def count_held_out(record: DatasetRecord, config: DataConfig) -> list[int]:
    """How many images of each class `held_out` holds out, whatever the seed."""
    if config.validation and "validation" in record.splits:
        return record.splits["validation"].class_counts
    used = [round(config.train_share * count) for count in record.splits["train"].class_counts]  # as `stratified_split`
    return [round(config.validation * count) for count in used]


def check_validation(config: Config, dataset: Dataset) -> None:
    """Raises a `UserError` where a key needs images to validate on, and the share to hold out of each class is none."""
    needing, share = key_that_needs_validation(config), config.data.validation
    if needing and not len(held_out(dataset, config.data, config.seed)[1]):
        raise UserError(
            f"{needing} needs images to validate on, and {share:.2%} of each class of {dataset.name} is not one image; raise "
            "data.validation"
        )
