"""What a reader must know of a training before any figure of it: that it diverged, went astray, or learned nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vgg_ddp.analysis.confusions import Counts
from vgg_ddp.analysis.intervals import QUANTILE
from vgg_ddp.analysis.significance import CHANCE

ASTRAY = 4.0  # times the loss of guessing: validation losses above both this
LARGE = 10.0  # and this come from weights that make no sense
RISEN = 2.0  # times the loss that a training began with


def warnings(metrics: list[dict[str, Any]], confusion: Counts) -> list[str]:
    """What went wrong, a sentence each; none where nothing did.

    Args:
        metrics: rows of metrics.jsonl, in the order of their steps; a loss that was no number is null there.
        confusion: of the network that came out, [classes, classes].
    """
    return [*of_training(metrics, len(confusion)), *filter(None, [_no_better(confusion)])]


def of_training(metrics: list[dict[str, Any]], classes: int) -> list[str]:
    """The `warnings` that can be given before the training of a network of this many classes has ended."""
    return [said for said in (_diverged(metrics), astray(metrics, classes)) if said]


def _loss(row: dict[str, Any]) -> float:
    return math.nan if row.get("loss") is None else float(row["loss"])


def _diverged(metrics: list[dict[str, Any]]) -> str:
    # Where steps are skipped that are not finite, a row of these alone has no loss.
    lost = [row for row in metrics if "loss" in row and not math.isfinite(_loss(row)) and "skipped" not in row]
    if not lost:
        return ""
    return f"The training diverged: at epoch {lost[0]['epoch']:.2f} its {_called(lost[0])} loss was no number."


def _called(row: dict[str, Any]) -> str:
    return "training" if row["split"] == "train" else str(row["split"])


def astray(metrics: list[dict[str, Any]], classes: int) -> str:
    """A warning that a loss rose far above its start, or above that of guessing, ln(classes); empty if none did."""
    guessing = math.log(max(classes, 2))
    finite = [row for row in metrics if math.isfinite(_loss(row))]
    training = [row for row in finite if row["split"] == "train"]
    limits = {"validation": max(LARGE, ASTRAY * guessing)}
    if training:
        limits["train"] = RISEN * max(guessing, _loss(training[0]))
    far = [row for row in finite if _loss(row) > limits.get(row["split"], math.inf)]
    if not far:
        return ""
    worst = max(far, key=_loss)
    return (
        f"The training went astray: its {_called(worst)} loss rose to {_loss(worst):,.4g} at epoch {worst['epoch']:.2f}, where "
        f"guessing gives {guessing:.2f}. A smaller optimizer.learning_rate or optimizer.clip_norm=1 may mend that."
    )


@dataclass(frozen=True)
class Ending:
    """How the validation accuracy stood at the end of a training.

    Attributes:
        last: the accuracy after the last epoch, `last_epoch`; `before`: a quarter of the training earlier, after epoch
            `before_epoch`; `best`: the highest, after epoch `best_epoch`.
        noise: by how much two accuracies on these images differ by chance, in 19 of 20 cases at most.
        rate_left: the last learning rate, as a share of the highest.
    """

    last: float
    last_epoch: float
    before: float
    before_epoch: float
    best: float
    best_epoch: float
    noise: float
    rate_left: float

    @property
    def verdict(self) -> Literal["rising", "level", "fallen"]:
        """Whether it still rose, by more than chance, or had fallen from its best."""
        if self.best - self.last > self.noise:
            return "fallen"
        return "rising" if self.last - self.before > self.noise else "level"


def ending(metrics: list[dict[str, Any]], images: int) -> Ending | None:
    """How a training that was validated on so many images ended; None with fewer than two validations.

    The noise is that of two independent samples; both accuracies are of the same images, so the true noise is smaller.
    """
    found = [(float(row["epoch"]), row.get("accuracy")) for row in metrics if row["split"] == "validation"]
    known = [(epoch, float(accuracy)) for epoch, accuracy in found if accuracy is not None]
    if len(known) < 2 or not images:
        return None
    rates = [float(row["lr"]) for row in metrics if row.get("lr") is not None]
    highest = max(rates, default=0.0)
    last_epoch, last = known[-1]
    before_epoch, before = [known[0], *(one for one in known[:-1] if one[0] <= 0.75 * last_epoch)][-1]
    best_epoch, best = max(known, key=lambda one: one[1])
    mean = (last + before) / 2
    noise = QUANTILE * math.sqrt(2 * mean * (1 - mean) / images)
    rate_left = rates[-1] / highest if highest else 1.0
    return Ending(last, last_epoch, before, before_epoch, best, best_epoch, noise, rate_left)


def _no_better(confusion: Counts) -> str:
    """Whether the network is right no more often than one that always gives the same answer, but for chance."""
    images, right, most = int(confusion.sum()), int(np.trace(confusion)), int(confusion.sum(axis=1).max(initial=0))
    if len(confusion) < 2 or not images:
        return ""
    constant = max(most / images, 1 / len(confusion))
    from scipy.stats import binom  # slow to import

    if constant < 1 and binom.sf(right - 1, images, constant) < CHANCE:
        return ""
    if right == images:
        return ""
    return (
        f"The network has learned nothing that these {images:,} images show: it names {100 * right / images:.1f} % correctly, "
        f"and always giving the most frequent answer {100 * constant:.1f} %."
    )
