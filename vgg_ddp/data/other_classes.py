"""A data set evaluated by a network that was trained on another: classes are matched by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from vgg_ddp.errors import UserError

if TYPE_CHECKING:
    from vgg_ddp.data.record import DatasetRecord

WORDS = {"train": "training"}  # splits in a message
MOST_NAMES = 20  # of classes in a message


def labels_by_name(record: DatasetRecord, classes: list[str]) -> NDArray[np.int64]:
    """For each class of a dataset its label among `classes`, the one of that name; -1 for a name that is not there.

    Raises:
        UserError: the dataset has images of such a class, in whichever split: the others are compared with the test images.
    """
    number = {name: i for i, name in enumerate(classes)}
    for split in sorted(record.splits, key=lambda name: name != "test"):
        counts = record.splits[split].class_counts
        unknown = [name for name, count in zip(record.classes, counts) if count and name not in number]
        if unknown:
            raise UserError(
                f"{record.name} has {WORDS.get(split, split)} images of {listed(unknown)}, which the network does not know: it "
                f"tells apart {listed(classes)}; the classes of {record.name} are {listed(record.classes)}"
            )
    return np.array([number.get(name, -1) for name in record.classes])


def as_trained(record: DatasetRecord, trained: DatasetRecord, labels: NDArray[np.int64]) -> DatasetRecord:
    """The record of a dataset with the classes and the normalisation of another; `labels`: see `labels_by_name`."""
    known = labels >= 0
    splits = {}
    for name, split in record.splits.items():
        counts = np.zeros(len(trained.classes), dtype=np.int64)
        counts[labels[known]] = np.array(split.class_counts)[known]
        splits[name] = msgspec.structs.replace(split, class_counts=counts.tolist())
    return msgspec.structs.replace(
        record,
        classes=trained.classes,
        groups=trained.groups,
        mean=trained.mean,
        std=trained.std,
        covariance=trained.covariance,
        splits=splits,
    )


def listed(names: list[str]) -> str:
    """Names of classes in a message, the first of many."""
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
