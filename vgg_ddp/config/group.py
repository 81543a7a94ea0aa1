"""What every group of keys is made of."""

from __future__ import annotations

import msgspec
from msgspec import Meta


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A group of keys. Subclasses check rules between their own keys in `__post_init__`."""


def key(meaning: str, **bounds: float) -> Meta:
    """What `vgg-ddp train --help` says of a key, and the bounds of its values (`ge`, `gt`, `le`, `lt`)."""
    return Meta(description=meaning, **bounds)  # type: ignore[call-overload]
