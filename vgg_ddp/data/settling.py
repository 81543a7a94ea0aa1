"""Keys whose value follows from the data set: sizes and normalisation of images, mirroring, the batch, weights of classes.

And those that must fit it.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator

import msgspec
import numpy as np

from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.other_classes import listed
from vgg_ddp.data.splits import Split
from vgg_ddp.errors import UserError

MUCH_LARGER = 1.25  # times the size that the network sees; of what is larger, a crop shows less than two thirds
NOT_MIRRORED = ("digits",)  # data sets of signs, whose mirror image is another sign or none
FILES_OF_WEIGHTS = (".pth", ".pt", ".safetensors")  # a run or a checkpoint is a folder
SMALLEST_BATCH = 16  # batch norm needs some images
ROOM = (8, 7)  # resized side to crop, the paper's 256 to 224


def settle(config: Config, dataset: Dataset, ranks: int = 1, continued: int | None = None) -> tuple[Config, list[str]]:
    """The configuration with everything settled that it leaves to the data set, and a line for each choice.

    Args:
        ranks: how many train; each must get a part of the batch.
        continued: the batch of the training that is continued.

    Raises:
        UserError: `analysis.groups` names an unknown class, or a value that was chosen conflicts with other keys.
    """
    check_groups(config.analysis.groups, dataset)
    data, choices = settle_sizes(config.data, dataset.split("train"))
    augment = config.augment
    if augment.flip == "auto":
        mirrored = dataset.name not in NOT_MIRRORED
        augment = msgspec.structs.replace(augment, flip="alternating" if mirrored else False)
        if not mirrored:
            choices.append(f"augment.flip=false: mirrored, {dataset.name} mean something else")
    if data.normalisation == "auto":
        # By its name, which a run that is continued still has when the file is gone.
        of_file = (config.model.initialize_from or "").endswith(FILES_OF_WEIGHTS)
        data = msgspec.structs.replace(data, normalisation="imagenet" if of_file else "data")
        if of_file:
            choices.append(
                "data.normalisation=imagenet: what torchvision's weights were trained with; =data for weights of other images"
            )
    choices += _seen_of_test_images(data, config.evaluate.scales, dataset)
    with _obeying_rules(choices):
        config = msgspec.structs.replace(config, data=data, augment=augment)
    own = dataset.record.splits.get("validation")
    images = round(dataset.record.splits["train"].count * config.data.train_share)
    if own is None:
        images = round(images * (1 - config.data.validation))
    elif config.data.validation:
        choices.append(
            f"validation: on the {own.count} validation images of {dataset.name}, not on a share of its training images"
        )
    config, more = settle_batch(config, images, ranks, continued)
    return config, choices + more


@contextlib.contextmanager
def _obeying_rules(choices: list[str]) -> Iterator[None]:
    """Turn a violated rule between keys into a `UserError`, which says that `choices`, not the user, set the values."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{error}; sizes were fitted to the data set ({'; '.join(choices)}): change the key that does not fit, or keep "
            "data.image_size as it is with data.photo_size=null"
        ) from None


def check_train_sizes(config: DataConfig) -> None:
    """Raises a `UserError` where a training would enlarge its images."""
    if (largest := max(config.train_sizes, default=0)) > config.image_size:
        raise UserError(
            f"data.train_sizes ({largest}) would enlarge images of data.image_size={config.image_size}: give smaller sizes, or "
            "data.train_sizes=[]"
        )


def check_test_images(config: Config, dataset: Dataset) -> None:
    """Raises a `UserError` where the evaluation that ends a training could not show the network every test image."""
    test, size = dataset.split("test"), config.data.image_size
    shapes = test.shapes(np.arange(len(test)))
    small = np.flatnonzero(shapes.min(axis=1) < size)
    if config.data.shorter_side is None and len(small):
        raise too_small(test.key(int(small[0])), shapes[small[0]], size)
    if config.loader == "resident" and test.uniform_shape is None:
        raise not_of_one_size(test)


def too_small(key: str, shape: np.ndarray, size: int) -> UserError:
    """The error for an image of `shape` (height, width), which is smaller than the network's `size` x `size` pixels."""
    return UserError(
        f"{key} is {shape[1]} x {shape[0]} pixels, smaller than data.image_size ({size}); set data.resize={size} to enlarge it"
    )


def not_of_one_size(split: Split) -> UserError:
    """What the resident loader says of images that differ in size."""
    return UserError(f"loader=resident keeps images of one size, and those of {split.name} differ; set loader=dali")


def _seen_of_test_images(config: DataConfig, scales: list[int], dataset: Dataset) -> list[str]:
    """What to say of test images that are smaller than a scale they are shown at, or of which only the middle is seen."""
    trained_on, tested_on = (_shorter_sides(dataset.split(name)) for name in ("train", "test"))
    said = []
    if small := int((tested_on < max(scales, default=0)).sum()):
        said.append(
            f"evaluate.scales={max(scales)}: {small} of {len(tested_on)} test images, of {_range(tested_on)} pixels, "
            "are enlarged to it, which adds no detail"
        )
    size = config.image_size
    cut = int((tested_on > MUCH_LARGER * max(size, trained_on.max())).sum())
    if config.shorter_side is None and cut:
        said.append(
            f"data.resize=null: of {cut} of {len(tested_on)} test images, of {_range(tested_on)} pixels, the network sees only "
            f"the middle {size} x {size}, where those of its training split are smaller; data.resize={size} shows nearly all"
        )
    return said


def _shorter_sides(split: Split) -> np.ndarray:
    return split.shapes(np.arange(len(split))).min(axis=1)


def check_groups(groups: dict[str, list[str]], dataset: Dataset) -> None:
    """Raises a `UserError` for the first member of a group that is no class of the data set."""
    for group, members in groups.items():
        for name in members:
            if name not in dataset.classes:
                near = difflib.get_close_matches(name, dataset.classes, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"its classes are {listed(dataset.classes)}"
                raise UserError(f"analysis.groups.{group} names {name!r}, which is no class of {dataset.name}; {hint}")


def with_class_weights(config: LossConfig, dataset: Dataset) -> LossConfig:
    """The same with a weight for each class in place of `class_weights: balanced`; over the images their mean is 1."""
    if config.class_weights != "balanced":
        return config
    counts = np.array(dataset.record.splits["train"].class_counts)
    weights = counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts) * (counts > 0)
    return msgspec.structs.replace(config, class_weights=weights.tolist())


def settle_batch(
    config: Config, trained_on: int, ranks: int = 1, continued: int | None = None
) -> tuple[Config, list[str]]:
    """The configuration with a batch small enough for `trained_on` images, its learning rate, and what was chosen.

    Few steps with a high rate diverge where many with a low rate would not. The rate is in proportion to the batch
    (Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.1).

    Args:
        ranks: how many train.
        continued: the batch of the training that is continued, which other numbers of images or ranks would not give.
    """
    smallest = max(SMALLEST_BATCH, 2 * config.accumulation)  # one image alone has no variance for batch norm
    possible = [config.batch]
    while possible[-1] // 2 >= smallest and _is_halved(config, possible[-1], ranks):
        possible.append(possible[-1] // 2)
    batch = next((b for b in possible if trained_on >= b * config.min_steps_per_epoch), possible[-1])
    if config.min_steps_per_epoch and continued in possible:
        batch = continued
    rate = config.optimizer.learning_rate * batch / (config.optimizer.rate_batch or config.batch)
    choices = []
    if batch != config.batch:
        steps = f"{trained_on} training images are {trained_on // batch} steps"
        choices.append(f"batch={batch}, optimizer.learning_rate={rate:g}: {steps}")
    elif rate != config.optimizer.learning_rate:
        given = f"{config.optimizer.learning_rate:g} is for batch={config.optimizer.rate_batch}"
        choices.append(f"optimizer.learning_rate={rate:g}: {given}")
    optimizer = msgspec.structs.replace(config.optimizer, learning_rate=rate, rate_batch=None)
    return msgspec.structs.replace(config, batch=batch, optimizer=optimizer, min_steps_per_epoch=0), choices


def _is_halved(config: Config, batch: int, ranks: int) -> bool:
    """Whether so many ranks can take half of a batch, by the rules of the configuration."""
    try:
        msgspec.structs.replace(config, batch=batch // 2).local_batch(ranks)
    except (UserError, ValueError):  # the latter of a rule that needs no ranks
        return False
    return batch % 2 == 0


def settle_sizes(config: DataConfig, split: Split) -> tuple[DataConfig, list[str]]:
    """The configuration with numbers for `resize: auto` and `photo_size`, and what was chosen, a line each.

    Images that are much larger than the network's input are resized, so that a crop shows most of their middle square; images
    that are smaller are enlarged.
    """
    shorter = _shorter_sides(split)
    choices = []
    size = config.image_size
    if config.photo_size is not None:
        if np.median(shorter) >= config.photo_size:
            size = config.photo_size
            choices.append(f"data.image_size={size}: half of the images have {int(np.median(shorter))} pixels or more")
        grown = [
            side * size // config.image_size for side in config.train_sizes
        ]  # by as much: a step up costs accuracy
        with _obeying_rules(choices):
            config = msgspec.structs.replace(config, image_size=size, train_sizes=grown, photo_size=None)
    if config.resize != "auto":
        return config, choices
    resize = None
    if shorter.max() > MUCH_LARGER * size:
        resize = size * ROOM[0] // ROOM[1]
    elif shorter.min() < size:
        resize = size
    if resize is not None:
        choices.append(
            f"data.resize={resize}: images of {_range(shorter)} pixels, of which the network sees {size} x {size}"
        )
    return msgspec.structs.replace(config, resize=resize), choices


def _range(sides: np.ndarray) -> str:
    low, high = int(sides.min()), int(sides.max())
    return f"{low}" if low == high else f"{low} to {high}"
