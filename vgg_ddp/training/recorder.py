"""Times and counts the steps, and writes them to the log: what the loop knows about itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.distributed.memory import used_bytes
from vgg_ddp.distributed.world import SharedUserError, World
from vgg_ddp.engines.gradients import MOST_IN_A_ROW
from vgg_ddp.errors import AFTER_DIVERGENCE
from vgg_ddp.loaders import Batch
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.run.metrics_log import MetricsLog
from vgg_ddp.training.profiling import phase


class Watch(Protocol):
    """Shows a training while it runs; on rank 0."""

    def row_written(self, row: dict[str, Any]) -> None:
        """This row was added to RUN/metrics.jsonl."""
        ...

    def validated(self, samples: NDArray[np.int64], label: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """The answers to the images held out: label [n], logits [n, classes], of the split's `samples` [n]."""
        ...


class Unwatched:
    """A `Watch` that does nothing."""

    def row_written(self, row: dict[str, Any]) -> None:
        """Do nothing."""

    def validated(self, samples: NDArray[np.int64], label: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Do nothing."""


class Recorder:
    """Keeps the loss and accuracy of the steps since the last row, and where their time went.

    The sums stay on the device: `row` is the one place where the host waits for it.
    """

    def __init__(
        self,
        state: State,
        world: World,
        batch: int,
        steps_per_epoch: int,
        total_steps: int,
        log: MetricsLog | None,
        progress: TrainingProgress,
        after_step: Callable[[], object] = lambda: None,
        figures: Callable[[], dict[str, float]] = dict,
        may_overflow: bool = False,
        watch: Watch | None = None,
        first_not_finite: Callable[[State], str] = lambda state: "",
    ) -> None:
        """The parts of a training that it records.

        Args:
            figures: more of them for each row, by name.
            may_overflow: a loss that is not finite does not mean that the training has diverged, but that the step is
                skipped. It is not counted.
            first_not_finite: says where a loss that is not finite began; all ranks call it together.
        """
        self._first_not_finite, self._figures = first_not_finite, figures
        self.watch = watch or Unwatched()
        self._after_step, self._may_overflow = after_step, may_overflow
        self._state, self._world, self._log, self._progress = state, world, log, progress
        self._batch, self._steps_per_epoch, self._total_steps = batch, steps_per_epoch, total_steps
        # Loss x images, correct, images; in float64, so that it makes no difference where a stop divides them.
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._steps, self._waited = 0, 0.0
        self._empty = 0  # steps in a row of which no loss was finite, where some may not be
        world.activity.begin(state.step)
        self._counted_until = self._window_start = time.perf_counter()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, noting the time spent waiting for each; what is done with each is a profiler phase."""
        iterator, activity = iter(batches), self._world.activity
        while True:
            start = time.perf_counter()
            activity.enter("fetch", self._state.step)
            with phase("data"):
                batch = next(iterator, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            activity.enter("step")
            with phase("step"):
                yield batch
            self._after_step()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one micro-batch; nothing here waits for the device."""
        images = len(labels)
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        found = torch.stack([loss.detach() * images, correct, torch.full_like(correct, images)])
        self._sums += torch.where(found[0].isfinite(), found, 0.0) if self._may_overflow else found

    def step_done(self, learning_rate: float, every_steps: int) -> None:
        """Count a step; write a row after every `every_steps`."""
        self._steps += 1
        self._learning_rate = learning_rate
        if self._state.step % every_steps == 0:
            self.row()

    def row(self) -> None:
        """Write the steps since the last row, if there are any, and add them to the epoch's totals. All ranks together.

        Raises:
            SharedUserError: the loss is not finite.
        """
        state = self._state
        if self._steps:
            with phase("metrics"):
                sums, ranks = self._sum()
            seconds = time.perf_counter() - self._window_start
            state.totals = [total + value for total, value in zip(state.totals, sums.tolist())]
            state.step_seconds += seconds
            state.wait_seconds += self._waited
            loss, correct, images = sums.tolist()
            row = {
                "step": state.step,
                "epoch": state.step / self._steps_per_epoch,
                "split": "train",
                "scope": "steps",
                "loss": loss / images if images else math.nan,
                "accuracy": correct / images if images else math.nan,
                "lr": self._learning_rate,
                "images_per_second": self._steps * self._batch / seconds,
                "data_wait": self._waited,
                "memory_bytes": used_bytes(self._world.device),
            }
            self._write(row | self._figures() | ({"ranks": ranks} if self._world.size > 1 else {}))
            self._empty = 0 if images else self._empty + self._steps
            if self._empty >= MOST_IN_A_ROW or not (math.isfinite(loss) or self._may_overflow):
                first = state.step - max(self._empty, self._steps) + 1
                where = self._first_not_finite(state)
                raise SharedUserError(
                    f"the loss of steps {first} to {state.step} is not finite{where}: {AFTER_DIVERGENCE}"
                )
            self._progress.update(row, (self._total_steps - state.step) * seconds / self._steps)
        self._sums.zero_()
        self._steps, self._waited = 0, 0.0
        self.resume_clock()

    def _sum(self) -> tuple[Tensor, dict[str, list[float]]]:
        """The sums over all ranks, and each rank's own figures, by rank: one message for both."""
        sums = self._sums.cpu().double()  # the host waits for the device here
        world = self._world
        images_per_second = self._steps * self._batch / world.size / (time.perf_counter() - self._window_start)
        figures = torch.zeros(3, world.size, dtype=torch.float64)
        ours = [images_per_second, self._waited, used_bytes(world.device)]
        figures[:, world.rank] = torch.tensor(ours, dtype=torch.float64)
        both = world.sum(torch.cat([sums, figures.flatten()]))
        names = ("images_per_second", "data_wait", "memory_bytes")
        return both[:3], dict(zip(names, both[3:].view(3, world.size).tolist()))

    def epoch_row(self) -> None:
        """Write the means over the epoch and start the next one's."""
        loss, correct, images = self._state.totals
        if images:
            self.scope_row("train", loss / images, correct / images)
        self._state.totals = [0.0, 0.0, 0.0]

    def scope_row(
        self, split: str, loss: float, accuracy: float, class_accuracy: list[float | None] | None = None
    ) -> None:
        """Write a row on a whole epoch or a whole split."""
        epoch = self._state.step / self._steps_per_epoch
        self._write(
            {
                "step": self._state.step,
                "epoch": epoch,
                "split": split,
                "scope": "epoch",
                "loss": loss,
                "accuracy": accuracy,
                **({} if class_accuracy is None else {"class_accuracy": class_accuracy}),
            }
        )

    def resume_clock(self) -> None:
        """Add the time since the last call to the training's seconds; time between two windows counts for no step."""
        now = time.perf_counter()
        self._state.seconds += now - self._counted_until
        self._counted_until = self._window_start = now

    def _write(self, row: dict[str, Any]) -> None:
        """Write `row` with "seconds", those of training until now: steps, validations and checkpoints."""
        if self._log is not None:
            seconds = self._state.seconds + time.perf_counter() - self._counted_until
            row = {**row, "seconds": seconds}
            self._log.write(row)
            self.watch.row_written(row)
