"""Reads a configuration from YAML and overrides (`key.sub=value`), and writes it back.

An unquoted value is read according to its key's type: `run.dir=007` is a name, `seed=007` is 7. Every mistake is a
`UserError` that names the file or override, the key's path and, for an unknown key, the nearest right one.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
import os
import re
import types
import typing
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from vgg_ddp.config.group import Group
from vgg_ddp.config.schema import BUILT_IN_SOURCES, Config
from vgg_ddp.errors import UserError

NULL = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)
MOST_LETTERS = 100_000  # of a configuration; YAML of millions takes minutes
MOST_VALUES = 100_000  # in it, those that an alias stands for counted each time
PATHS = (
    "run.dir",
    "data.source",
    "data.directory",
    "deepspeed.config",
    "model.initialize_from",
    "analysis.attributes",
    "analysis.human_labels",
)
OTHER_NAMES = {  # under which other trainers know a key
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "bs": "batch",
    "batch_size": "batch",
    "arch": "network",
    "dataset": "data.source",
    "num_workers": "data.workers",
    "gpus": "nproc",
    "amp": "precision",
    "output_dir": "run.dir",
    "weights": "model.initialize_from",
    "pretrained": "model.initialize_from",
    "checkpoint_path": "model.initialize_from",
}


class _Plain(str):
    """An unquoted value: its key decides the type."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that leaves the types of values to their keys, and refuses a key written twice."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012 (PyYAML's own)

    def construct_document(self, node: yaml.Node) -> Any:
        """The values, where those of aliases, each counted every time, are not too many."""
        if _values(node, {}) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, "its aliases stand for too many values", node.start_mark
            )
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A scalar as it stands."""
        return _Plain(node.value) if node.style is None else str(node.value)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for; infinitely many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of the YAML file at `path`, changed by `overrides` of the form `key.sub=value`.

    Raises:
        UserError: a missing or unreadable file, an unknown key, a wrong type or value.
    """
    raw = read_yaml(Path(path))
    _reject_unknown(raw, Config, str(path))
    origins = {}
    for override in overrides:
        key, value = _parse_override(override)
        _assign(raw, key, value)
        origins[".".join(key)] = f"'{override}'"
    raw = _typed(raw, Config)
    _let_words_decide(raw, origins)
    return _convert(raw, str(path), origins)


def dump(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load` reads it back equal."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)


def flat(config: Config) -> dict[str, Any]:
    """The value of every key by its full path, as JSON has it, in the order of the schema."""
    values = msgspec.to_builtins(config)
    return {key: functools.reduce(operator.getitem, key.split("."), values) for key in all_keys()}


def with_absolute_paths(config: Config) -> Config:
    """`config` for the record, which is read in other working directories too."""
    raw = msgspec.to_builtins(config)
    for key in PATHS:
        *groups, name = key.split(".")
        group = functools.reduce(operator.getitem, groups, raw)
        group[name] = _absolute(key, group[name])
    return msgspec.convert(raw, Config)


def with_absolute_path(word: str) -> str:
    """An override for the record, as `with_absolute_paths`."""
    names, value = _parse_override(word)
    key = ".".join(names)
    absolute = _absolute(key, value)
    return word if absolute == value else f"{key}={absolute}"


def _absolute(key: str, value: Any) -> Any:
    """The value of `key`, made absolute if it is a path; anything else, such as a data set's name, is left as it is."""
    if key not in PATHS or value in (None, *NULL, *BUILT_IN_SOURCES):
        return value
    return os.path.abspath(_expanded(value))


def _let_words_decide(raw: dict[str, Any], origins: dict[str, str]) -> None:
    """Drop a recipe's keys that adapt size, batch or rate to the data set, where an override sets that value itself."""
    data = raw.get("data") or {}
    resize, photo_size = data.get("resize"), data.get("photo_size")
    too_small = isinstance(resize, int) and isinstance(photo_size, int) and resize < photo_size
    if "data.photo_size" not in origins and ("data.image_size" in origins or ("data.resize" in origins and too_small)):
        data.pop("photo_size", None)
    if "min_steps_per_epoch" not in origins and "batch" in origins:
        raw.pop("min_steps_per_epoch", None)
    if "optimizer.learning_rate" in origins and "optimizer.rate_batch" not in origins:
        (raw.get("optimizer") or {}).pop("rate_batch", None)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; unquoted values stay text, to be read according to their keys' types.

    Raises:
        UserError: a missing file, or one that does not hold such YAML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_LETTERS + 1)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = (
            f"did you mean {path.parent / near[0]}?"
            if near
            else "give the path of a YAML file, e.g. configs/quickstart.yaml"
        )
        raise UserError(f"config file {path} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    if len(text) > MOST_LETTERS:
        raise UserError(f"config file {path} has more than {MOST_LETTERS:,} letters: it is no configuration")
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, say
        raise UserError(f"config file {path} is not valid YAML: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"config file {path} must hold 'key: value' lines, not a {type(raw).__name__}")
    return raw


def _parse_override(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not of the form key=value, e.g. batch=256 or optimizer.learning_rate=0.1")
    names = key.split(".")
    _reject_unknown(_nest(names, text), Config, f"'{override}'")
    if (annotation := _annotation(key)) is None:
        raise UserError(
            f"'{override}': {'.'.join(names[:-1])} has no keys of its own; a name with a dot in it can be given in a file alone"
        )
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if not quoted and not _alternatives(annotation, list, dict):
        return names, _Plain(text)
    try:
        return names, yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"'{override}': {text[:80]!r} is not a valid YAML value; quote it") from None


def _annotation(key: str) -> Any:
    """The type of the key with this full path; None where there is no such key."""
    annotation: Any = Config
    for name in key.split("."):
        mapping, group = _alternatives(annotation, dict), group_of(annotation)
        known = _types(group).get(name) if group is not None else None
        annotation = typing.get_args(mapping[0])[1] if mapping else known
    return annotation


def _alternatives(annotation: Any, *kinds: Any) -> list[Any]:
    """The types that `annotation` allows of `kinds`, which may be generic: `list` stands for `list[int]` too."""
    annotation = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [found for inner in typing.get_args(annotation) for found in _alternatives(inner, *kinds)]
    return [annotation] if (typing.get_origin(annotation) or annotation) in kinds else []


def _typed(raw: dict[str, Any], struct: type[Group], prefix: str = "") -> dict[str, Any]:
    """The values of a file and of overrides, converted to the types of their keys where possible."""
    typed: dict[str, Any] = {}
    for name, annotation in _types(struct).items():
        if name in raw:
            value, group, full = raw[name], group_of(annotation), f"{prefix}{name}"
            if group is not None:
                typed[name] = _typed(value, group, f"{full}.") if isinstance(value, dict) else {}
            else:
                value = _as_type(value, annotation)
                typed[name] = _expanded(value) if full in PATHS and isinstance(value, str) else value
    return typed


def _as_type(value: Any, annotation: Any) -> Any:
    if isinstance(value, list):
        (inner, *_) = typing.get_args(next(iter(_alternatives(annotation, list)), list[str]))
        return [_as_type(one, inner) for one in value]
    if isinstance(value, dict):
        (_, inner) = typing.get_args(next(iter(_alternatives(annotation, dict)), dict[str, Any]))
        return {str(name): _as_type(one, inner) for name, one in value.items()}
    if not isinstance(value, _Plain):
        return value
    text = str(value)
    if text in NULL and (not text or _alternatives(annotation, type(None))):
        return None
    if _alternatives(annotation, str) or text in literals(annotation):
        return text
    return _natural(text)


def _natural(text: str) -> int | float | bool | str | None:
    """A number, true, false or null as in YAML 1.2, and yes, no, on, off; else the text. No octal, no base 60."""
    if NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    return None if text in NULL else text


def _expanded(path: str) -> str:
    """A path with ~ and environment variables expanded as by a shell, if it begins with one of them.

    Raises:
        UserError: no file can have that name.
    """
    try:
        Path(path).exists()
        if any(unicodedata.category(letter) == "Cc" for letter in path):
            raise ValueError("it has a control character")
    except (OSError, ValueError) as error:
        if not isinstance(error, PermissionError):
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path:.80} is no path: {reason}; choose another name") from None
    return os.path.expandvars(os.path.expanduser(path)) if path.startswith(("~", "$")) else path


def _nest(key: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(key):
        value = {name: value}
    return value


def _assign(raw: dict[str, Any], key: list[str], value: Any) -> None:
    for name in key[:-1]:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    raw[key[-1]] = value


@functools.cache
def _types(struct: type[Group]) -> dict[str, Any]:
    """The types of a group's keys, without what is said of their meanings and bounds."""
    return typing.get_type_hints(struct)


def group_of(annotation: Any) -> type[Group] | None:
    """The group struct that `annotation` names, or None for a plain key."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Group) else None


def all_keys(struct: type[Group] = Config, prefix: str = "") -> list[str]:
    """Every key's full path, in the order of the schema."""
    keys = []
    for name, annotation in _types(struct).items():
        group = group_of(annotation)
        keys += all_keys(group, f"{prefix}{name}.") if group else [prefix + name]
    return keys


def _reject_unknown(raw: Any, struct: type[Group], origin: str, prefix: str = "") -> None:
    hints = _types(struct)
    for name, value in raw.items():
        full = f"{prefix}{name}"
        if name not in hints:
            raise UserError(f"{origin}: unknown key '{full}'{_nearest(full)}; 'vgg-ddp train --help' lists every key")
        group = group_of(hints[name])
        if group is None:
            if isinstance(value, dict) and not _alternatives(hints[name], dict):
                raise UserError(f"{origin}: '{full}' is a single key, it has no '{full}.{next(iter(value), '')}'")
        elif isinstance(value, dict):
            _reject_unknown(value, group, origin, f"{full}.")
        elif not (isinstance(value, _Plain) and value in NULL):
            raise UserError(f"{origin}: '{full}' is a group of keys, not a value{_nearest(full + '.')}")


def _nearest(key: str) -> str:
    known = all_keys()
    last = key.rsplit(".", 1)[-1]
    near = [k for k in known if k.rsplit(".", 1)[-1] == last][:1]  # the right name in the wrong group
    near = near or [OTHER_NAMES[last]] if last in OTHER_NAMES else near
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        near = [
            k for k in known if difflib.get_close_matches(key.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1]], cutoff=0.7)
        ][:1]
    return f"; did you mean '{near[0]}'?" if near else ""


def _reject_infinite(raw: dict[str, Any], origins: dict[str, str], path: str, prefix: str = "") -> None:
    for name, value in raw.items():
        if isinstance(value, dict):
            _reject_infinite(value, origins, path, f"{prefix}{name}.")
        elif any(
            isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])
        ):
            raise UserError(f"{origins.get(prefix + name, path)}: key '{prefix}{name}': expected a finite number")


def _convert(raw: dict[str, Any], path: str, origins: dict[str, str]) -> Config:
    _reject_infinite(raw, origins, path)
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        origin = origins.get(key.split("[")[0], path)
        if key in ("", *_types(Config)) and " " in message and not message.startswith(("Expected", "Invalid")):
            raise UserError(f"{origin}: {message}") from None  # a rule of a group's __post_init__
        choices = _choices(key.split("[")[0])
        raise UserError(f"{origin}: key '{key}': {message[0].lower()}{message[1:].replace('`', '')}{choices}") from None


def _choices(key: str) -> str:
    values = choices(_annotation(key)) if key in all_keys() else []
    return f"; choose one of {', '.join(values)}" if values else ""


def choices(annotation: Any) -> list[str]:
    """What a key of this type can be set to, where that can be listed, e.g. NUMBER, auto; else an empty list."""
    named = ["true", "false"] * bool(_alternatives(annotation, bool)) + literals(annotation)
    number = ["NUMBER"] * bool(_alternatives(annotation, int, float))
    return number + named + ["null"] * bool(_alternatives(annotation, type(None))) if named else []


def literals(annotation: Any) -> list[str]:
    """The strings that a key of this type can be set to, where it takes one of a list; else an empty list."""
    values = [value for literal in _alternatives(annotation, Literal) for value in typing.get_args(literal)]
    return [value for value in values if isinstance(value, str)]
