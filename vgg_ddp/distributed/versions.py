"""The versions that must be the same on all ranks: the code and torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

import vgg_ddp


def encoded() -> str:
    """The versions of this process, as JSON."""
    return json.dumps(_versions())


def difference(theirs: str | bytes) -> str:
    """How the versions here differ from `theirs`, rank 0's `encoded()`, for an error message; empty where they agree."""
    ours, others = _versions(), json.loads(theirs)
    different = [name for name in ours if ours[name] != others.get(name)]
    return " and ".join(f"{name} {ours[name]} where rank 0 has {others.get(name)}" for name in different)


def _versions() -> dict[str, str]:
    return {"vgg_ddp": f"{vgg_ddp.__version__} (code {_code()})", "torch": str(torch.__version__)}


def _code() -> str:
    """The first digits of the SHA-256 over this package's sources."""
    digest = hashlib.sha256()
    folder = Path(vgg_ddp.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
