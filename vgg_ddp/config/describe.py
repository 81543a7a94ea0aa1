"""The list of every key, made from the schema."""

from __future__ import annotations

import textwrap
import typing
from typing import Any

import msgspec

from vgg_ddp.config.group import Group
from vgg_ddp.config.reading import choices, group_of
from vgg_ddp.config.schema import Config


def describe_keys() -> str:
    """Every key with its type, default and meaning, one group after another."""
    return "\n".join(_lines(Config, Config(), ""))


def _lines(struct: type[Group], defaults: Group, prefix: str) -> list[str]:
    lines: list[str] = []
    groups: list[str] = []
    for name, annotation in typing.get_type_hints(struct, include_extras=True).items():
        value = getattr(defaults, name)
        group = group_of(annotation)
        if group is not None:
            groups += ["", *_lines(group, value, f"{prefix}{name}.")]
        else:
            lines += _key_lines(prefix + name, annotation, value)
    return lines + groups


def _key_lines(key: str, annotation: Any, default: object) -> list[str]:
    meaning = next(m.description for m in typing.get_args(annotation) if isinstance(m, msgspec.Meta) and m.description)
    values = choices(annotation)
    text = f"{meaning} [{'|'.join(values)}]" if values else meaning
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    head = f"  {key}={shown}"
    body = textwrap.wrap(text, width=72)
    if len(head) < 38:
        return [f"{head:<38} {body[0]}", *(f"{'':<38} {line}" for line in body[1:])]
    return [head, *(f"{'':<38} {line}" for line in body)]
