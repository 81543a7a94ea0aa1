"""A learning rate that is lowered when the validation accuracy stops improving: Simonyan & Zisserman, ICLR 2015, section 3.1.

Pure functions of the validation accuracies so far, which a checkpoint holds: so any rank, at any world size, before or after a
restart, has the same rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vgg_ddp.config.optimizer import ScheduleConfig


def plateaus(config: ScheduleConfig, accuracies: Sequence[float]) -> int:
    """How often the accuracy has stopped improving: `patience` validations in a row that gained no more than `min_delta`.

    torch's ReduceLROnPlateau counts the same if its patience is set to one less.
    """
    best, waited, found = -math.inf, 0, 0
    for accuracy in accuracies:
        if accuracy > best + config.min_delta:
            best, waited = accuracy, 0
        else:
            waited += 1
        if waited == config.patience:
            waited, found = 0, found + 1
    return found


def has_ended(config: ScheduleConfig, accuracies: Sequence[float]) -> bool:
    """Whether the training is over: the accuracy has stopped improving once more often than the rate may be lowered."""
    return config.name == "plateau" and plateaus(config, accuracies) > config.reductions


def news(config: ScheduleConfig, accuracies: Sequence[float]) -> str:
    """The message if the last of these validations lowers the rate or ends the training; else empty."""
    found = plateaus(config, accuracies)
    if config.name != "plateau" or found == plateaus(config, accuracies[:-1]):
        return ""
    done = "the training ends" if found > config.reductions else f"the learning rate is multiplied by {config.gamma:g}"
    return f"; no better for {config.patience} validation{'s' * (config.patience > 1)}: {done}"
