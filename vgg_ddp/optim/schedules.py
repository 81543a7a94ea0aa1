"""Learning-rate schedules: pure functions from the step to a factor of the peak learning rate.

A schedule is one function and its line in `SCHEDULES`. Steps count from 0 over the whole training. Besides the step, a
schedule gets the accuracies of all validations so far, oldest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vgg_ddp.config.optimizer import ScheduleConfig
from vgg_ddp.optim.plateau import plateaus

Schedule = Callable[[int, Sequence[float]], float]


def constant(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Always 1."""
    return lambda step, accuracies: 1.0


def step_decay(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Multiplied by `gamma` at each milestone."""
    milestones = [round(epoch * steps_per_epoch) for epoch in config.milestones]
    return lambda step, accuracies: config.gamma ** sum(step >= milestone for milestone in milestones)


def cosine(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """From 1 to `final` along half a cosine (Loshchilov & Hutter, ICLR 2017, eq. 5, one period)."""
    return lambda step, accuracies: config.final + (1 - config.final) * (1 + math.cos(math.pi * step / total_steps)) / 2


def one_cycle(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """A triangle: from 0 up to 1 at `peak_at`, then down to `final` (Smith & Topin 2018, without the third phase)."""
    peak = config.peak_at * total_steps

    def factor(step: int, accuracies: Sequence[float]) -> float:
        if step + 1 < peak:
            return (step + 1) / peak
        return config.final + (1 - config.final) * min(1.0, (total_steps - step) / (total_steps - peak))

    return factor


def exponential(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """From `first` at the first step to 1 at the last, each step by the same factor: a learning-rate range test (Smith 2017,
    "Cyclical learning rates for training neural networks", section 3.3, where it rises by the same amount)."""
    return lambda step, accuracies: config.first ** (1 - step / max(1, total_steps - 1))


def plateau(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Multiplied by `gamma` whenever the validation accuracy stops improving, `reductions` times (the paper, section 3.1)."""
    return lambda step, accuracies: config.gamma ** min(plateaus(config, accuracies), config.reductions)


SCHEDULES = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "exponential": exponential,
    "plateau": plateau,
}


def build(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The schedule of `config` behind a linear warm-up: global step and accuracies to a factor of the peak learning rate."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    after = SCHEDULES[config.name](config, steps_per_epoch, total_steps)
    return lambda step, accuracies: after(step, accuracies) * min(1.0, (step + 1) / (warmup + 1))
