"""Alternating rounds, their statistics, and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchmarks.measurement import rounds
from benchmarks.measurement.device_speed import copy, matrix_product, reference


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    rates = rounds.in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert rates == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = rounds.median_interval(generator.normal(10, 1, 25).tolist())
        held += low <= 10 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_the_interval_narrows_as_that_of_a_normal_median_does() -> None:
    values = norm.ppf((np.arange(400) + 0.5) / 400).tolist()  # normal quantiles: a sample without randomness
    low, high = rounds.median_interval(values)
    expected = 2 * 1.96 * np.sqrt(np.pi / 2 / 400)  # the asymptotic standard error of a median
    assert high - low == pytest.approx(expected, rel=0.15)


def test_an_interval_of_one_value_is_that_value() -> None:
    assert rounds.median_interval([3.0]) == (3.0, 3.0)


def test_a_summary_names_its_unit_and_keeps_every_round() -> None:
    row = rounds.summary([3.0, 1.0, 2.0], unit="seconds", reference=[9.0, 9.0, 9.0], higher_is_better=False)
    assert row["seconds"] == 2.0
    assert (row["least"], row["most"], row["rounds"], row["all"]) == (1.0, 3.0, 3, [3.0, 1.0, 2.0])
    assert row["interval"][0] <= 2.0 <= row["interval"][1]
    assert row["reference"] == [9.0, 9.0, 9.0]
    assert not row["higher_is_better"]


def test_products_and_copies_count_operations_and_bytes() -> None:
    device = torch.device("cpu")
    assert 1e8 < matrix_product(device, seconds=0.02)() < 1e14  # bounds for one thread of any machine
    assert 1e7 < copy(device, seconds=0.02)() < 1e13


@pytest.mark.seconds
def test_the_reference_lies_between_its_parts() -> None:
    """The best of several trials of each, since other processes slow some of them down."""
    trials = [make(torch.device("cpu")) for make in (matrix_product, copy, reference)]
    product, copied, both = (max(trial() for _ in range(5)) for trial in trials)
    assert min(product, copied) / 3 < both < max(product, copied) * 3
