"""What a study varies: its file, and the cells that follow from it, each a whole configuration that was checked."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vgg_ddp.config import Config, dump, flat, load, with_absolute_paths
from vgg_ddp.config.reading import read_yaml
from vgg_ddp.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OWN_KEYS = ("run.dir", "resume", "seed")  # which the study sets itself
MOST_CELLS = 10_000
LONGEST_NAME = 60  # letters of what a cell's folder says of its values


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A study's file. Values are kept as text: a key's own type decides what they mean.

    Attributes:
        base: the configuration that is varied: a path relative to the current directory, or to the study's file.
        overrides: words that change it for all cells, e.g. "epochs=4".
        grid: the values of each key, every combination of which is trained. A value with keys of its own,
            `{schedule.name: plateau, schedule.patience: 2}`, sets these; what it stands under is then only a name.
        random: in place of a grid, what to draw each key from: a list, or `{low: 0.01, high: 1, log: true}`.
        trials: configurations to draw.
        seeds: trainings of each configuration, with the base's seed and those after it.
        objective: of the images held out from training, at the checkpoint that a run evaluates; never of the test images.
        pruner: gives up hopeless cells: `{name: median}` and the arguments of Optuna's pruner of that name.
        side_by_side: trainings at once.
        test: show the test accuracy of every configuration: for questions that are about validation itself.
    """

    base: str
    overrides: list[str] = msgspec.field(default_factory=list)
    grid: dict[str, Annotated[list[Any], Meta(min_length=1)]] = msgspec.field(default_factory=dict)
    random: dict[str, Any] = msgspec.field(default_factory=dict)
    trials: Annotated[int, Meta(ge=1)] | None = None
    seeds: Annotated[int, Meta(ge=1)] = 1
    objective: Literal["accuracy", "loss"] = "accuracy"
    pruner: dict[str, Any] = msgspec.field(default_factory=dict)
    side_by_side: Annotated[int, Meta(ge=1)] = 1
    test: bool = False

    def __post_init__(self) -> None:
        if bool(self.grid) == bool(self.random):
            raise ValueError("a study has a grid, or what to draw at random: one of grid and random")
        if (self.trials is None) == bool(self.random):
            raise ValueError("trials goes with random: how many configurations to draw")
        for key in self.varied:
            if key in OWN_KEYS:
                raise ValueError(
                    f"{key} is set by the study itself; seeds says how often each configuration is trained"
                )
        cells = self.seeds * (self.trials or math.prod(map(len, self.grid.values())))
        if cells > MOST_CELLS:
            raise ValueError(f"these are {cells:,} trainings, and a study has at most {MOST_CELLS:,}")

    @property
    def keys(self) -> list[str]:
        """What is varied."""
        return list(self.grid or self.random)

    @property
    def varied(self) -> list[str]:
        """The keys of the configuration that differ between cells: `keys`, and those inside their values."""
        inner = [name for values in self.grid.values() for value in values if isinstance(value, dict) for name in value]
        return list(dict.fromkeys([*self.keys, *inner]))

    @property
    def higher_is_better(self) -> bool:
        """Whether the best cell has the highest objective."""
        return self.objective == "accuracy"


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        name: of its folder in STUDY/runs.
        configuration: the number of its configuration, which cells with other seeds share.
        values: of what is varied, as text, in the order of the study's file.
        words: overrides that set them, and the seed; they follow the study's own overrides of STUDY/base.yaml.
    """

    name: str
    configuration: int
    values: dict[str, str]
    seed: int
    words: list[str]


def read(path: Path) -> Definition:
    """The study's file at `path`.

    Raises:
        UserError: a missing or unreadable file, an unknown or missing key, a wrong type.
    """
    raw = {str(key): _plain(value) for key, value in read_yaml(path).items()}
    varied = {name: raw[name] for name in ("grid", "random") if isinstance(raw.get(name), dict)}
    raw |= {name: {key: _as_text(value) for key, value in given.items()} for name, given in varied.items()}
    try:
        return msgspec.convert(raw, Definition, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        known = ", ".join(field.name for field in msgspec.structs.fields(Definition))
        hint = (
            f"; the keys of a study are {known}" if "unknown field" in message or "missing required" in message else ""
        )
        said = f"key '{key}': " if key else ""
        raise UserError(f"{path}: {said}{message.replace('`', chr(39))}{hint}") from None


def _plain(value: Any) -> Any:
    """What YAML holds, with plain strings for what its reader leaves to a key's type."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else str(value)


def _as_text(value: Any) -> Any:
    """Values in lists and under names as text, lists among them as YAML writes them in one line."""
    if isinstance(value, dict):
        return {key: _text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_text(inner) if isinstance(inner, dict) else _text(inner) for inner in value]
    return value


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else str(value)


def found_base(definition: Definition, path: Path) -> Path:
    """The base of the study whose file is `path`."""
    beside = path.parent / definition.base
    return beside if beside.is_file() and not Path(definition.base).is_file() else Path(definition.base)


def base_text(base: Path) -> str:
    """What STUDY/base.yaml holds: the whole base, so that a study does not change with the file that it came from.

    Without the overrides, which are applied on loading: there they replace what a recipe would adapt to its data set.

    Raises:
        UserError: it cannot be read, or breaks a rule.
    """
    return dump(with_absolute_paths(load(base)))


def cells(definition: Definition, base: Path) -> list[Cell]:
    """Every cell of a study in the order in which they are trained: all configurations with one seed, then the next.

    Raises:
        UserError: a value that its key does not take, or a configuration that breaks a rule, before any training.
    """
    overrides = definition.overrides
    seed = load(base, overrides).seed
    varied = list(_grid(definition) if definition.grid else _drawn(definition, base, overrides, seed))
    for values in varied:
        _check(load(base, [*overrides, *_words(values)]), values)
    return [
        Cell(_name(number, values, seed + k), number, _shown(values), seed + k, [*_words(values), f"seed={seed + k}"])
        for k in range(definition.seeds)
        for number, values in enumerate(varied, start=1)
    ]


def _grid(definition: Definition) -> list[dict[str, Any]]:
    return [dict(zip(definition.grid, values)) for values in itertools.product(*definition.grid.values())]


def _drawn(definition: Definition, base: Path, overrides: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """`trials` draws without repetitions; more trials begin with the same draws."""
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(key, given, base, overrides) for key, given in definition.random.items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = [study.ask(distributions) for _ in range(definition.trials or 0)]
    drawn = dict.fromkeys(tuple(_drawn_text(trial.params[key]) for key in distributions) for trial in trials)
    return [dict(zip(distributions, values)) for values in drawn]


def _drawn_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distribution(key: str, given: Any, base: Path, overrides: Sequence[str]) -> BaseDistribution:
    """The distribution to draw a key from; one of whole numbers if the key's values are.

    Raises:
        UserError: it gives neither a list of values nor a range, or an end of the range is no value of the key.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(given, list) and given and all(isinstance(value, str) for value in given):
        return CategoricalDistribution(given)
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        raise UserError(f"random: {key} needs a list of values, or {{low: ..., high: ...}} with log: true or a step")
    low, high = (flat(load(base, [*overrides, f"{key}={given[end]}"]))[key] for end in ("low", "high"))
    number = type(low) if type(low) in (int, float) else str
    try:
        step = number(given["step"]) if "step" in given else None
        log = {"true": True, "false": False}[str(given.get("log", "false")).lower()]
        if number is int:
            return IntDistribution(low, high, log=log, step=step or 1)
        return FloatDistribution(low, high, log=log, step=step)
    except KeyError as error:
        raise UserError(f"random: {key} cannot be drawn: log is true or false, not {error}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"random: {key} cannot be drawn: {error}") from None


def _check(config: Config, values: dict[str, Any]) -> None:
    if config.data.validation == 0:
        where = ", ".join(f"{key}={value}" for key, value in _shown(values).items())
        raise UserError(
            f"{where} holds no images out to compare by: set data.validation above 0; a study never chooses by the test images"
        )
    if config.nproc != "auto":
        config.local_batch(config.nproc)


def _words(values: dict[str, Any]) -> list[str]:
    words = []
    for key, value in values.items():
        words += [f"{inner}={text}" for inner, text in value.items()] if isinstance(value, dict) else [f"{key}={value}"]
    return words


def _shown(values: dict[str, Any]) -> dict[str, str]:
    return {key: _label(value) for key, value in values.items()}


def _label(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.rpartition('.')[2]}={text}" for key, text in value.items())
    return str(value)


def _name(number: int, values: dict[str, Any], seed: int) -> str:
    """A name for the cell's folder: unique, sorted by configuration, with its values as far as they fit."""
    said = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in _shown(values).items())
    said = re.sub(r"[^A-Za-z0-9._]+", "-", said)[:LONGEST_NAME].strip("-.")
    return f"{number:03d}-{said}-seed-{seed}"


def require_optuna() -> None:
    """Raises a `UserError` where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("vgg-ddp study needs optuna; pip install 'vgg_ddp[study]'")
