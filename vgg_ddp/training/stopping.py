"""Reasons to stop before the last epoch: a signal from outside, or a validation accuracy that no longer rises."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType
from typing import Any

import torch

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import STOP_SIGNALS, Signalled
from vgg_ddp.optim import plateau
from vgg_ddp.run.checkpoint import State


class StopRequest:
    """Inside its context, notes a signal, and lets all ranks agree on the step after which they stop.

    Outside the main thread signals cannot be handled: there they are left to the program around it.

    Args:
        every_steps: how often ranks on GPUs ask one another; ranks on CPUs ask at each step, at no noticeable cost.
        synchronise_every: the steps between two averages of local SGD's parameters; its ranks ask only then.
    """

    def __init__(self, world: World, every_steps: int, synchronise_every: int = 1) -> None:
        self._world = world
        often = 1 if world.size == 1 or world.device.type == "cpu" else every_steps
        together = synchronise_every if world.size > 1 else 1
        self._every = math.ceil(often / together) * together
        self._asked = 0  # the number of the signal
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:  # the process is ending with this exception: keep recording signals until it has
            return
        self._world.activity.enter("evaluate")  # everything is saved
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked:  # after the last step
            raise Signalled(self._asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if number == signal.SIGINT:  # a second Ctrl-C ends the process at once
            signal.signal(number, self._before[signal.SIGINT])

    def agreed(self, step: int) -> bool:
        """Whether any rank was asked to stop, known to all ranks at the same step."""
        if step % self._every:
            return False
        return bool(self._world.sum(torch.tensor([float(self._asked > 0)])).item())


def note_validation(config: Config, state: State, accuracy: float, loss: float) -> bool:
    """Record the validation of the epoch that has just ended, and set `state.stopped`; whether it is the best so far.

    A network whose loss is not finite is never the best.
    """
    epoch, stop = state.epoch, config.stop
    better = math.isfinite(loss) and accuracy > state.best_accuracy + (
        stop.min_delta if state.best_accuracy >= 0 else 0
    )
    if better:
        state.best_accuracy, state.best_epoch = accuracy, epoch
    state.accuracies.append(accuracy if math.isfinite(loss) else 0.0)
    state.stopped = must_stop(config, state)
    return better


def must_stop(config: Config, state: State) -> bool:
    """Whether the training ends with the epoch that `state` has just validated, by `config.stop` or its schedule."""
    patience = config.stop.patience
    out_of_patience = patience is not None and state.epoch - state.best_epoch >= patience
    return out_of_patience or plateau.has_ended(config.schedule, state.accuracies)
