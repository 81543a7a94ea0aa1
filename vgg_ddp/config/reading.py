"""Reads a configuration from YAML and overrides (`key.sub=value`), and writes it back.

Every mistake is a `UserError` that names the file or override, the key's path and, for an unknown key, the nearest right one.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from vgg_ddp.config.group import Group
from vgg_ddp.config.schema import Config
from vgg_ddp.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-4` as a number, as YAML 1.2 does, and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would take for numbers."""


for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of the YAML file at `path`, changed by `overrides` of the form `key.sub=value`.

    Raises:
        UserError: a missing or unreadable file, an unknown key, a wrong type or value.
    """
    raw = _read_yaml(Path(path))
    _reject_unknown(raw, Config, str(path))
    origins = {}
    for override in overrides:
        key, value = _parse_override(override)
        _reject_unknown(_nest(key, value), Config, f"'{override}'")
        _assign(raw, key, value)
        origins[".".join(key)] = f"'{override}'"
    return _convert(raw, str(path), origins)


def dump(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load` reads it back equal."""
    return yaml.dump(msgspec.to_builtins(config), Dumper=_Dumper, sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
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
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, say
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
    try:
        return key.split("."), yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"'{override}': {text!r} is not a valid YAML value; quote it") from None


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


def group_of(annotation: Any) -> type[Group] | None:
    """The group struct that `annotation` names, or None for a plain key."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Group) else None


def all_keys(struct: type[Group] = Config, prefix: str = "") -> list[str]:
    """Every key's full path, in the order of the schema."""
    keys = []
    for name, annotation in typing.get_type_hints(struct).items():
        group = group_of(annotation)
        keys += all_keys(group, f"{prefix}{name}.") if group else [prefix + name]
    return keys


def _reject_unknown(raw: Any, struct: type[Group], origin: str, prefix: str = "") -> None:
    hints = typing.get_type_hints(struct)
    for name, value in raw.items():
        full = f"{prefix}{name}"
        if name not in hints:
            raise UserError(f"{origin}: unknown key '{full}'{_nearest(full)}; 'vgg-ddp train --help' lists every key")
        group = group_of(hints[name])
        if group is None:
            if isinstance(value, dict):
                raise UserError(f"{origin}: '{full}' is a single key, it has no '{full}.{next(iter(value), '')}'")
        elif isinstance(value, dict):
            _reject_unknown(value, group, origin, f"{full}.")
        elif value is not None:
            raise UserError(f"{origin}: '{full}' is a group of keys, not a value{_nearest(full + '.')}")


def _nearest(key: str) -> str:
    known = all_keys()
    last = key.rsplit(".", 1)[-1]
    near = [k for k in known if k.rsplit(".", 1)[-1] == last][:1]  # the right name in the wrong group
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
    raw = {
        key: {} if value is None and group_of(typing.get_type_hints(Config)[key]) else value
        for key, value in raw.items()
    }
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        origin = origins.get(key.split("[")[0], path)
        if (
            key in ("", *typing.get_type_hints(Config))
            and " " in message
            and not message.startswith(("Expected", "Invalid"))
        ):
            raise UserError(f"{origin}: {message}") from None  # a rule of a group's __post_init__
        choices = _choices(key.split("[")[0])
        raise UserError(f"{origin}: key '{key}': {message[0].lower()}{message[1:].replace('`', '')}{choices}") from None


def _choices(key: str) -> str:
    annotation: Any = Config
    for name in key.split("."):
        annotation = typing.get_type_hints(annotation, include_extras=True).get(name)
        if annotation is None:
            return ""
    values = literals(annotation)
    return f"; choose one of {', '.join(values)}" if values else ""


def literals(annotation: Any) -> list[str]:
    """The strings that a key of this type can be set to, where it takes one of a list; else an empty list."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [value for inner in typing.get_args(annotation) for value in literals(inner)]
