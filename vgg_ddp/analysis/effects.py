"""What each of several factors does to a figure, from trainings with every level of them: means, differences, interactions.

A linear model with a term for each level of each factor and one for each seed (a block: what a seed brings is the same for all
levels), by least squares. In a full grid the marginal means are the plain ones; where cells are missing they are those
that the model expects of a full one (Searle, Speed and Milliken 1980, "Population marginal means in the linear model").
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.intervals import Interval
from vgg_ddp.analysis.significance import CHANCE, NO_ERROR
from vgg_ddp.analysis.standing import holm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """One level of a factor.

    Attributes:
        cells: how many figures there are of it.
        mean: over the levels of the other factors, all weighted equally.
        difference: from the factor's first level; `interval`: of it, at 95 %; `p_value`: how often chance alone would
            bring one as large (t test). None for the first level, and where the figures do not determine them.
    """

    name: str
    cells: int
    mean: float | None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Effect:
    """What one factor does; `p_value`: how often chance alone would make its levels differ as much (F test)."""

    factor: str
    levels: list[Level]
    p_value: float | None


@dataclass(frozen=True)
class Interaction:
    """Whether what one factor does depends on the level of another; the p-value is corrected by Holm for the pairs asked."""

    factors: tuple[str, str]
    p_value: float


class _Fit:
    """Least squares: `columns` [n, k], of which some may follow from others."""

    def __init__(self, columns: Array, figures: Array) -> None:
        self.columns = columns
        self._inverse = np.linalg.pinv(columns)
        self.solution = self._inverse @ figures
        self.rank = int(np.linalg.matrix_rank(columns))
        self.freedom = len(figures) - self.rank
        self.residual = float(((figures - columns @ self.solution) ** 2).sum())

    def value(self, weights: Array) -> float | None:
        """The sum of the terms with these weights [k]; None where the figures do not determine it."""
        told = np.allclose(weights @ self._inverse @ self.columns, weights, atol=1e-8)
        return float(weights @ self.solution) if told else None

    def tested(self, weights: Array) -> tuple[float | None, Interval | None, float | None]:
        """That sum, its interval at 95 % and its p-value against zero; these two None without degrees of freedom."""
        value = self.value(weights)
        if value is None or self.freedom < 1:
            return value, None, None
        error = float(np.sqrt(self.residual / self.freedom * ((weights @ self._inverse) ** 2).sum()))
        if error < NO_ERROR:  # nothing scatters, so that there is nothing to test
            return value, (value, value), 1.0 if abs(value) < NO_ERROR else 0.0
        from scipy.stats import t  # slow to import

        half = float(t.ppf(1 - CHANCE / 2, self.freedom)) * error
        return value, (value - half, value + half), 2 * float(t.sf(abs(value) / error, self.freedom))

    def p_value(self, without: _Fit) -> float | None:
        """The p-value of the F test of the terms that `without` lacks; None without such terms or degrees of freedom."""
        terms = self.rank - without.rank
        if terms < 1 or self.freedom < 1:
            return None
        gained = (without.residual - self.residual) / terms
        if self.residual / self.freedom < NO_ERROR**2:  # nothing scatters: any difference at all is one
            return 1.0 if gained < NO_ERROR**2 else 0.0
        from scipy.stats import f  # slow to import

        return float(f.sf(gained / (self.residual / self.freedom), terms, self.freedom))


def effects(
    figures: Array,
    factors: dict[str, list[str]],
    blocks: list[int],
    orders: Mapping[str, list[str]] = MappingProxyType({}),
) -> tuple[list[Effect], list[Interaction]]:
    """What each factor does to the figures, and which pairs of factors depend on one another.

    Args:
        figures: one for each cell, [n].
        factors: for each factor, its level in each cell.
        blocks: the seed of each cell.
        orders: the levels of a factor in their order; by default they are in the order in which they occur. The other levels
            are compared with the first one.
    """
    orders = {name: orders.get(name) or list(dict.fromkeys(levels)) for name, levels in factors.items()}
    terms = {name: _indicators(levels, orders[name]) for name, levels in factors.items()}
    seeds = _indicators([str(block) for block in blocks], list(dict.fromkeys(map(str, blocks))))
    everything = _fit(figures, [*terms.values(), seeds])
    found = []
    for name, levels in factors.items():
        others = [term for other, term in terms.items() if other != name]
        p_value = everything.p_value(_fit(figures, [*others, seeds]))
        weights = _mean_weights(list(factors).index(name), [*terms.values(), seeds])
        means = [everything.value(row) for row in weights]
        differences = [everything.tested(row - weights[0]) for row in weights]
        told = [
            Level(level, levels.count(level), mean, *(differences[k] if k else ()))
            for k, (level, mean) in enumerate(zip(orders[name], means))
        ]
        found.append(Effect(name, told, p_value))
    return found, _interactions(figures, terms, seeds, everything)


def _interactions(figures: Array, terms: dict[str, Array], seeds: Array, without: _Fit) -> list[Interaction]:
    pairs, p_values = [], []
    for one, other in itertools.combinations(terms, 2):
        products = np.einsum("na,nb->nab", terms[one], terms[other]).reshape(len(figures), -1)
        p_value = _fit(figures, [*terms.values(), seeds, products]).p_value(without)
        if p_value is not None:
            pairs.append((one, other))
            p_values.append(p_value)
    corrected = holm(np.array(p_values)).tolist() if pairs else []
    return [Interaction(pair, p_value) for pair, p_value in zip(pairs, corrected)]


def _indicators(levels: list[str], names: list[str]) -> Array:
    """A column of zeros and ones for each of the names of levels."""
    return np.array([[float(level == name) for name in names] for level in levels])


def _fit(figures: Array, terms: list[Array]) -> _Fit:
    return _Fit(np.hstack([np.ones((len(figures), 1)), *terms]), figures)


def _mean_weights(chosen: int, terms: list[Array]) -> Array:
    """For each level of the factor at `chosen`, the weights of its marginal mean: every other term's levels alike."""
    levels = terms[chosen].shape[1]
    parts = [
        np.eye(levels) if k == chosen else np.full((levels, term.shape[1]), 1 / term.shape[1])
        for k, term in enumerate(terms)
    ]
    return np.hstack([np.ones((levels, 1)), *parts])


def mean_interval(figures: Array) -> Interval | None:
    """The interval of the mean of figures [n] at 95 % (Student 1908); None of fewer than two."""
    if len(figures) < 2:
        return None
    from scipy.stats import t  # slow to import

    half = float(t.ppf(1 - CHANCE / 2, len(figures) - 1) * figures.std(ddof=1) / np.sqrt(len(figures)))
    return float(figures.mean()) - half, float(figures.mean()) + half
