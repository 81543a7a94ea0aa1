"""What a learning-rate range test tells, on losses whose shape is known."""

from __future__ import annotations

import numpy as np
import pytest

from vgg_ddp.analysis import range_test

RATES = np.logspace(-6, 1, 120)


def losses(begins: float, lowest: float, noise: float = 0.02) -> np.ndarray:
    """Losses that are flat, fall linearly in the logarithm of the rate from `begins` to `lowest`, then rise."""
    at = np.log10(RATES)
    fallen = np.clip((at - np.log10(begins)) / (np.log10(lowest) - np.log10(begins)), 0, 1)
    risen = np.clip(at - np.log10(lowest), 0, None)
    return 2.3 - 1.5 * fallen + 5 * risen + noise * np.random.default_rng(0).normal(size=len(RATES))


@pytest.mark.parametrize("lowest", [0.01, 0.1, 1.0])
def test_the_rates_at_which_the_loss_turns_are_found(lowest: float) -> None:
    found = range_test.read(RATES, losses(lowest / 1000, lowest))
    assert found is not None and found.suggested == found.lowest / 10
    assert lowest / 2.5 < found.lowest < lowest * 1.5  # the smoothed loss begins to rise earlier
    tenth = lowest / 1000 * 1000**0.1  # where a tenth of the fall is done
    assert tenth / 3 < found.begins < tenth * 3


def test_the_mean_over_neighbours_is_numpys() -> None:
    values = np.random.default_rng(1).normal(size=60)  # three on either side
    expected = np.convolve(values, np.ones(7) / 7, mode="valid")
    np.testing.assert_allclose(range_test.smoothed(values)[3:-3], expected)


@pytest.mark.parametrize(
    "told",
    [
        2.3 + 0.05 * np.random.default_rng(2).normal(size=120),  # learns nothing
        np.linspace(2.3, 0.5, 120),  # falls until the end
        np.linspace(2.3, 9.0, 120),  # only rises
        np.linspace(2.3, 0.5, 10),  # too few steps
    ],
    ids=["flat", "falling", "rising", "few"],
)
def test_where_the_loss_does_not_fall_and_rise_nothing_is_suggested(told: np.ndarray) -> None:
    assert range_test.read(RATES[: len(told)], told) is None


def test_a_training_is_stopped_once_its_loss_has_risen_far() -> None:
    whole = losses(1e-4, 0.1)
    ended = next(k for k in range(len(whole)) if range_test.has_diverged(whole[:k]))
    assert RATES[ended] > 0.1 and whole[ended] > 2 * whole[:ended].min()
    assert not range_test.has_diverged(np.array([]))
