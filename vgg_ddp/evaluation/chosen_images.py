"""Which images besides the test images a checkpoint is evaluated on: some that it was trained on, and some that it was not."""

from __future__ import annotations

import numpy as np

from vgg_ddp.analysis.budget import BUDGETS
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.validation import HeldOut, held_out
from vgg_ddp.run import checkpoint
from vgg_ddp.training import continuing

CALIBRATION_IMAGES = 10_000  # at most, to fit one temperature on
TRAINING_IMAGES = 2_000  # of any data set; up to the number of test images if that is more, within `analysis.budget`


def training_images(config: Config, dataset: Dataset, state: checkpoint.State) -> HeldOut:
    """Images that the checkpoint was trained on, evenly spread, as many as are looked at; none where they are not known."""
    if not _trained_on(config, dataset, state):
        return HeldOut("train", np.empty(0, dtype=np.int64))
    trained, _ = held_out(dataset, config.data, config.seed)
    most = min(BUDGETS[config.analysis.budget].training_images, max(TRAINING_IMAGES, len(dataset.split("test"))))
    return HeldOut("train", np.sort(trained)[:: -(-len(trained) // most)])


def _trained_on(config: Config, dataset: Dataset, state: checkpoint.State) -> bool:
    now = continuing.identity(config, dataset)
    then = checkpoint.identity_of(state, now)
    chosen_by = ("dataset", "data.validation", "data.train_share", "data.split_seed", "seed")
    return all(then.get(key) == now[key] for key in chosen_by)


def calibration_images(config: Config, dataset: Dataset, state: checkpoint.State) -> tuple[HeldOut, str]:
    """Images that the checkpoint was not trained on, at most `CALIBRATION_IMAGES`, and which they are; or none, and why."""
    none = HeldOut("train", np.empty(0, dtype=np.int64))
    if not _trained_on(config, dataset, state):
        return none, "the checkpoint was trained on other data, or held out other images for validation"
    _, validation = held_out(dataset, config.data, config.seed)
    if len(validation) == 0:
        return none, "the run held out no images for validation"
    samples = validation.samples[:: -(-len(validation) // CALIBRATION_IMAGES)]
    return HeldOut(validation.split, samples), f"{len(samples):,} images held out for validation"
