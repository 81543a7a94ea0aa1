"""How each training image is answered while it is trained on, from the logits that the step has anyway.

What data maps, the area under the margin and forgetting are computed from: `vgg_ddp.analysis.dynamics`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.config.schema import LogConfig
from vgg_ddp.data.order import Order
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Batch
from vgg_ddp.run import training_answers
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.directory import RunDirectory

MOST_NAMED = 5  # images in a message


class TrainingAnswers:
    """Keeps the answers of the current epoch, by position in its order, and writes them to RUN/answers when it ends.

    A rank writes at the positions of its own slices and has zeros elsewhere. Each position belongs to one rank, so the sum
    over the ranks has every value unchanged, whatever their number. A checkpoint within an epoch has the answers so far.
    """

    def __init__(self, order: Order, images: int, run: RunDirectory, world: World) -> None:
        """`images`: of the split that `order` takes samples of."""
        self._order, self._images, self._run, self._world = order, images, run, world
        self._kept = torch.zeros(3, order.steps_per_epoch * order.batch, device=world.device)  # margin, probability, 1

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Keep the answers [n, classes] to a micro-batch; nothing here waits for the device."""
        piece = batch.slice
        where = piece.position if isinstance(piece, DeviceSlice) else slice(piece.start, piece.stop)
        margin, probability = margin_and_probability(logits.detach().float(), batch.labels)
        # Assigns one device tensor: a Python number would be copied from the host, which a CUDA graph cannot record.
        self._kept[:, where] = torch.stack([margin, probability, torch.ones_like(margin)])

    def so_far(self, state: State) -> Tensor | None:
        """The answers [2, positions] of the current epoch, NaN where they are unknown; None at its beginning.

        All ranks together.
        """
        if not state.step_in_epoch:
            return None
        kept = self._of_all_ranks(state)
        return torch.where(kept[2] > 0, kept[:2], torch.nan)

    def first_not_finite(self, state: State) -> str:
        """The first step of the current epoch with answers that are not finite, and their images, in words; else "".

        All ranks together.
        """
        kept, batch = self._of_all_ranks(state), self._order.batch
        wrong = ((kept[2] > 0) & ~kept[:2].isfinite().all(dim=0)).nonzero()[:, 0]
        if not len(wrong):
            return ""
        step = int(wrong[0]) // batch
        positions = wrong[wrong < (step + 1) * batch].numpy()
        number = state.step - state.step_in_epoch + step + 1
        if len(positions) == int((kept[2, step * batch : (step + 1) * batch] > 0).sum()):
            return f" (first in step {number}, to every image: by the weights that step {number - 1} left, or by batch norm)"
        samples = sorted(self._order.epoch(state.epoch)[positions].tolist())
        more = "" if len(samples) <= MOST_NAMED else f" and {len(samples) - MOST_NAMED} more"
        return f" (first in step {number}, to training images {', '.join(map(str, samples[:MOST_NAMED]))}{more})"

    def _of_all_ranks(self, state: State) -> Tensor:
        kept = self._kept[:, : state.step_in_epoch * self._order.batch].to("cpu", copy=True).contiguous()
        return self._world.sum(kept)

    def load(self, answers: Tensor | None, state: State) -> None:
        """Continue from the answers in a checkpoint (see `so_far`); remove those of later epochs. All ranks together.

        Raises:
            UserError: the disk is read-only.
        """
        with self._world.together():
            if self._world.is_main:
                with self._run.writing():
                    training_answers.keep_until(self._run, state.epoch)
        if self._world.is_main and answers is not None:
            known = ~answers[0].isnan()
            self._kept[:, : answers.shape[1]] = torch.cat([answers.nan_to_num(), known[None].float()])

    def end_epoch(self, state: State) -> None:
        """Write the answers of the epoch whose last step was just taken. All ranks together.

        Raises:
            UserError: the disk is full or read-only.
        """
        answers = self.so_far(state)
        self._kept.zero_()
        with self._world.together():
            if self._world.is_main and answers is not None:
                self._world.activity.enter("save")
                samples = torch.from_numpy(self._order.epoch(state.epoch)[: answers.shape[1]])
                training_answers.write_epoch(self._run, state.epoch, _by_sample(answers, samples, self._images).numpy())


def build(config: LogConfig, order: Order, images: int, run: RunDirectory, world: World) -> TrainingAnswers:
    """What keeps the answers to the `images` of the split that is trained on, or nothing."""
    return (TrainingAnswers if config.answers else NoAnswers)(order, images, run, world)


class NoAnswers(TrainingAnswers):
    """Keeps nothing: `log.answers` is false."""

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Do nothing."""

    def so_far(self, state: State) -> None:
        """None."""

    def first_not_finite(self, state: State) -> str:
        """Nothing is known."""
        return ""

    def end_epoch(self, state: State) -> None:
        """Do nothing."""


def margin_and_probability(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the label's logit is above the highest of the others, and the label's probability, [n] each.

    Args:
        logits: [n, classes].
        labels: int64 [n].

    Pleiss et al., "Identifying mislabeled data using the area under the margin ranking", NeurIPS 2020, equation 1.
    """
    label = labels[:, None]
    of_label = logits.gather(1, label)
    others = logits.scatter(1, label, -torch.inf).amax(dim=1)
    return of_label[:, 0] - others, (of_label[:, 0] - logits.logsumexp(dim=1)).exp()


def _by_sample(answers: Tensor, samples: Tensor, images: int) -> Tensor:
    """[2, positions] as [2, images]: the mean where an order has a sample more than once, not a number where it has none."""
    known = ~answers[0].isnan()
    sums = torch.zeros(2, images).index_add_(1, samples[known], answers[:, known])
    times = torch.zeros(images).index_add_(0, samples[known], known[known].float())
    return sums / torch.where(times > 0, times, torch.nan)
