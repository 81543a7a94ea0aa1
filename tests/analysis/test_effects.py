"""What each of several factors does: held against SciPy's tests and scikit-learn's least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import f_oneway, ttest_1samp, ttest_rel
from sklearn.linear_model import LinearRegression

from vgg_ddp.analysis.effects import effects, mean_interval


def grid(*factors: int, seeds: int) -> tuple[dict[str, list[str]], list[int]]:
    """Every combination of levels with every seed."""
    cells = list(itertools.product(*map(range, factors), range(seeds)))
    levels = {f"factor {k}": [f"level {cell[k]}" for cell in cells] for k in range(len(factors))}
    return levels, [cell[-1] for cell in cells]


def test_two_values_with_the_same_seeds_are_a_paired_t_test() -> None:
    figures = np.random.default_rng(0).normal(size=10)
    ((found,), pairs) = effects(figures, *grid(2, seeds=5))
    expected = ttest_rel(figures[5:], figures[:5])
    level = found.levels[1]
    assert_allclose(level.difference, figures[5:].mean() - figures[:5].mean())
    assert_allclose(level.interval, expected.confidence_interval(0.95))
    assert_allclose([level.p_value, found.p_value], expected.pvalue)
    assert pairs == []


def test_one_key_without_blocks_is_an_analysis_of_variance() -> None:
    figures = np.random.default_rng(1).normal(size=12) + np.repeat([0, 1, 3], 4)
    factors, _ = grid(3, seeds=4)
    ((found,), _) = effects(figures, factors, [0] * 12)
    assert_allclose(found.p_value, f_oneway(*figures.reshape(3, 4)).pvalue)


def test_marginal_means_of_a_full_grid_are_the_plain_ones() -> None:
    figures = np.random.default_rng(2).normal(size=2 * 3 * 4)
    found, _ = effects(figures, *grid(2, 3, seeds=4))
    assert_allclose([level.mean for level in found[0].levels], figures.reshape(2, 12).mean(axis=1))
    assert_allclose([level.mean for level in found[1].levels], figures.reshape(2, 3, 4).mean(axis=(0, 2)))
    assert [level.cells for level in found[1].levels] == [8, 8, 8]


def test_the_first_level_is_the_first_that_is_met_or_that_of_a_given_order() -> None:
    figures = np.array([3.0, 1.0, 2.0, 3.5, 1.5, 2.5])
    factors, seeds = {"rate": ["0.3", "0.1", "0.2"] * 2}, [0, 0, 0, 1, 1, 1]
    for order, first in ((None, 3.25), (["0.1", "0.2", "0.3"], 1.25)):
        ((found,), _) = effects(figures, factors, seeds, {} if order is None else {"rate": order})
        assert [level.name for level in found.levels] == (order or ["0.3", "0.1", "0.2"])
        assert found.levels[0].mean == pytest.approx(first)
        means = dict(zip(["0.3", "0.1", "0.2"], [3.25, 1.25, 2.25]))
        assert [level.mean for level in found.levels] == pytest.approx([means[level.name] for level in found.levels])


def test_where_cells_are_missing_the_model_fills_them_in() -> None:
    random = np.random.default_rng(3)
    factors, seeds = grid(2, 3, seeds=4)
    kept = np.sort(random.permutation(24)[:15])
    figures = random.normal(size=24)
    columns = np.array([factors["factor 0"], factors["factor 1"], list(map(str, seeds))]).T
    one_hot = np.hstack([columns[:, [k]] == np.unique(columns[:, k]) for k in range(3)]).astype(float)
    expected = LinearRegression().fit(one_hot[kept], figures[kept]).predict(one_hot)
    some = {name: [levels[k] for k in kept] for name, levels in factors.items()}
    found, _ = effects(figures[kept], some, [seeds[k] for k in kept])
    means = {level.name: level.mean for level in found[1].levels}
    assert_allclose([means[f"level {k}"] for k in range(3)], expected.reshape(2, 3, 4).mean(axis=(0, 2)))


def test_what_the_figures_do_not_tell_is_not_told() -> None:
    ((found,), _) = effects(np.array([0.1, 0.2, 0.4]), {"key": ["a", "b", "c"]}, [0, 0, 0])
    assert [level.difference for level in found.levels] == [None, pytest.approx(0.1), pytest.approx(0.3)]
    assert found.p_value is None and {level.interval for level in found.levels} == {None}
    both, _ = effects(np.array([0.1, 0.2, 0.3, 0.4]), {"one": list("aabb"), "two": list("ccdd")}, [0, 1, 0, 1])
    assert [level.difference for effect in both for level in effect.levels] == [None] * 4  # always changed together


def test_intervals_and_interactions_are_right_as_often_as_they_say() -> None:
    random, factors = np.random.default_rng(4), grid(2, 2, seeds=3)
    inside, seen, trials = 0, 0, 400
    for _ in range(trials):
        effect = np.array([0, 0.5])[[int(level[-1]) for level in factors[0]["factor 0"]]]
        figures = effect + random.normal(size=3)[factors[1]] + random.normal(size=12)
        (found, _), (pair,) = effects(figures, *factors)
        low, high = found.levels[1].interval or (0, 0)
        inside += low <= 0.5 <= high
        seen += pair.p_value < 0.05
    assert abs(inside / trials - 0.95) < 0.035 and abs(seen / trials - 0.05) < 0.035
    both = np.array([a == b == "level 1" for a, b in zip(*factors[0].values())])
    _, (pair,) = effects(8.0 * both + random.normal(size=12), *factors)
    assert pair.p_value < 0.01 and pair.factors == ("factor 0", "factor 1")


def test_nothing_that_scatters_is_no_division_by_zero() -> None:
    ((found,), _) = effects(np.array([0.5, 0.5, 0.5, 0.5]), *grid(2, seeds=2))
    assert found.p_value == 1.0 and found.levels[1].p_value == 1.0
    ((found,), _) = effects(np.array([0.5, 0.5, 0.7, 0.7]), *grid(2, seeds=2))
    assert found.p_value == 0.0 and found.levels[1].difference == pytest.approx(0.2)


def test_the_interval_of_a_mean_is_students() -> None:
    figures = np.random.default_rng(5).normal(size=4)
    assert_allclose(mean_interval(figures), ttest_1samp(figures, 0).confidence_interval(0.95))
    assert mean_interval(figures[:1]) is None
