"""What came out of a study: figures of each cell and each configuration, what the keys do, and which configuration is best."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vgg_ddp.analysis.effects import Effect, Interaction, effects, mean_interval
from vgg_ddp.analysis.significance import CHANCE
from vgg_ddp.analysis.standing import holm
from vgg_ddp.config import load
from vgg_ddp.data.record import read_record
from vgg_ddp.data.validation import count_held_out
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.study.definition import Definition
from vgg_ddp.study.running import run_folder
from vgg_ddp.study.trials import Ending, Found

PARTS = 3  # of equal size, into which values drawn from a range are grouped to estimate what the key does


class CellFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One training. `seconds`: of training; `images`: how many it took steps with; `held_out`: on how many other images the
    objective was measured. None where the training left no record.
    """

    name: str
    configuration: int
    values: dict[str, str]
    seed: int
    ending: Ending
    why: str
    objective: float | None
    test_accuracy: float | None
    seconds: float | None
    images: int | None
    held_out: int | None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of one configuration together.

    Attributes:
        done: how many of its seeds came to their end; the means are over these.
        interval: of the mean over seeds at 95 %, by the scatter of these seeds alone; None of fewer than two.
    """

    number: int
    values: dict[str, str]
    done: int
    mean: float | None
    interval: tuple[float, float] | None
    lowest: float | None
    highest: float | None
    test_accuracy: float | None
    seconds: float | None
    images: float | None
    held_out: int | None
    endings: dict[Ending, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """STUDY/summary.json.

    Attributes:
        best: the number of the configuration with the best mean, among those with the most finished seeds.
        as_good: those that differ from it by no more than chance; None if there is no other, or one seed each cannot tell.
    """

    objective: str
    seeds: int
    cells: list[CellFigures]
    configurations: list[Configuration]
    best: int | None
    as_good: list[int] | None
    effects: list[Effect]
    interactions: list[Interaction]
    seconds: float
    images: int


def summarise(folder: Path, definition: Definition, found: list[Found]) -> Summary:
    """The summary of a study in `folder` whose cells became what `found` says."""
    cells = [_figures(folder, one) for one in found]
    numbers = dict.fromkeys(cell.configuration for cell in cells)
    configurations = [_configuration([cell for cell in cells if cell.configuration == number]) for number in numbers]
    sign = 1 if definition.higher_is_better else -1
    most = max((one.done for one in configurations), default=0)
    ranked = sorted(
        (one for one in configurations if one.done == most and one.mean is not None),
        key=lambda one: -sign * (one.mean or 0.0),
    )
    done = [cell for cell in cells if cell.objective is not None]
    told, interactions = _effects(definition, done)
    return Summary(
        objective=f"validation {definition.objective}",
        seeds=definition.seeds,
        cells=cells,
        configurations=configurations,
        best=ranked[0].number if ranked else None,
        as_good=_as_good([one.number for one in ranked], done),
        effects=told,
        interactions=interactions,
        seconds=sum(cell.seconds or 0.0 for cell in cells),
        images=sum(cell.images or 0 for cell in cells),
    )


def _figures(folder: Path, one: Found) -> CellFigures:
    run = RunDirectory(run_folder(folder, one.cell))
    rows = read_metrics(run.metrics)
    steps, seconds = (rows[-1]["step"], rows[-1].get("seconds")) if rows else (None, None)
    images = held_out = None
    with contextlib.suppress(UserError):  # of a training that ended before it wrote its configuration
        config = load(run.config)
        images = None if steps is None else steps * config.batch
        record = read_record(run.data)
        held_out = None if record is None else sum(count_held_out(record, config.data))
    evaluated: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        evaluated = read_json(run.evaluation / "summary.json") or {}
    return CellFigures(
        name=one.cell.name,
        configuration=one.cell.configuration,
        values=one.cell.values,
        seed=one.cell.seed,
        ending=one.ending,
        why=one.why,
        objective=one.value,
        test_accuracy=evaluated.get("accuracy") if one.ending == "done" else None,
        seconds=seconds,
        images=images,
        held_out=held_out,
    )


def _configuration(cells: list[CellFigures]) -> Configuration:
    done = [cell for cell in cells if cell.objective is not None]
    figures = np.array([cell.objective for cell in done], dtype=np.float64)
    return Configuration(
        number=cells[0].configuration,
        values=cells[0].values,
        done=len(done),
        mean=_mean([cell.objective for cell in done]),
        interval=mean_interval(figures),
        lowest=float(figures.min()) if done else None,
        highest=float(figures.max()) if done else None,
        test_accuracy=_mean([cell.test_accuracy for cell in done]),
        seconds=_mean([cell.seconds for cell in done]),
        images=_mean([cell.images for cell in done]),
        held_out=next((cell.held_out for cell in done), None),
        endings={ending: sum(cell.ending == ending for cell in cells) for ending in sorted({c.ending for c in cells})},
    )


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _as_good(ranked: list[int], done: list[CellFigures]) -> list[int] | None:
    """The configurations that differ from the first of `ranked` by no more than chance, at 95 % for all of them together."""
    cells = sorted(
        (cell for cell in done if cell.configuration in ranked), key=lambda cell: ranked.index(cell.configuration)
    )
    if len(ranked) < 2:
        return None
    (found,), _ = effects(
        np.array([cell.objective for cell in cells], dtype=np.float64),
        {"configuration": [str(cell.configuration) for cell in cells]},
        [cell.seed for cell in cells],
    )
    p_values = [level.p_value for level in found.levels[1:]]
    if any(p_value is None for p_value in p_values):
        return None
    corrected = holm(np.array(p_values, dtype=np.float64))
    return [number for number, p_value in zip(ranked[1:], corrected) if p_value >= CHANCE]


def _effects(definition: Definition, done: list[CellFigures]) -> tuple[list[Effect], list[Interaction]]:
    """What each key does, of those with two values or more; values from a range in parts, the lowest first."""
    parted = {key: _levels(definition, key, [cell.values[key] for cell in done]) for key in definition.keys}
    factors = {key: levels for key, (levels, _) in parted.items() if len(set(levels)) > 1}
    if not factors:
        return [], []
    figures = np.array([cell.objective for cell in done], dtype=np.float64)
    return effects(figures, factors, [cell.seed for cell in done], {key: parted[key][1] for key in factors})


def _levels(definition: Definition, key: str, values: list[str]) -> tuple[list[str], list[str]]:
    """The level of each value, and the levels in their order."""
    if not isinstance(definition.random.get(key), dict):
        return values, list(dict.fromkeys(values))
    numbers = np.array(values, dtype=np.float64)
    ordered = np.unique(numbers)
    ends = [part for part in np.array_split(ordered, PARTS) if len(part)]
    names = {
        value: f"{part[0]:g} to {part[-1]:g}" if len(part) > 1 else f"{part[0]:g}" for part in ends for value in part
    }
    return [names[value] for value in numbers], list(dict.fromkeys(names.values()))
