"""What a learning-rate range test tells: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHARE = 20  # one in this many of all steps, on either side of each, is averaged over
BELOW = 10.0  # the suggestion is the rate with the lowest loss divided by this
BEGUN = 0.1  # share of the whole fall of the loss after which it has begun to fall
RISEN = 4.0  # times the lowest loss: the training has diverged


@dataclass(frozen=True)
class RangeTest:
    """A training whose rate rose at every step.

    Attributes:
        smooth: the loss of each step, as a mean over its neighbours, [n].
        begins: the rate at which the loss has fallen by a tenth of all that it falls: Smith's lower bound.
        lowest: the rate at which it is lowest, beyond which it rises: an upper bound.
        suggested: a tenth of that.
    """

    smooth: Array
    begins: float
    lowest: float
    suggested: float


def read(rates: Array, losses: Array) -> RangeTest | None:
    """What the losses [n] at rising rates [n] tell; None where the loss did not fall, or fell until the end."""
    if len(losses) < SHARE:
        return None
    smooth = smoothed(losses)
    bottom = int(smooth.argmin())
    fall = smooth[:bottom].max(initial=smooth[bottom]) - smooth[bottom]
    if bottom in (0, len(smooth) - 1) or fall < 3 * float(np.abs(losses - smooth)[: bottom + 1].mean()):
        return None
    top = int(smooth[:bottom].argmax())
    begun = top + int((smooth[top:] <= smooth[top] - BEGUN * fall).argmax())
    return RangeTest(smooth, float(rates[begun]), float(rates[bottom]), float(rates[bottom]) / BELOW)


def smoothed(losses: Array) -> Array:
    """The mean over each step and its neighbours on both sides, fewer at the ends."""
    reach = max(1, len(losses) // SHARE)
    return np.array([losses[max(0, k - reach) : k + reach + 1].mean() for k in range(len(losses))])


def has_diverged(losses: Array) -> bool:
    """Whether the last steps' loss is so far above the lowest that a higher rate tells nothing more."""
    smooth = smoothed(losses) if len(losses) else losses
    return len(smooth) > SHARE and bool(smooth[-1] > RISEN * smooth.min())
