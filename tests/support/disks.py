"""File systems of a certain size."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk_of(size: str, place: Path) -> Iterator[Path]:
    """A tmpfs of `size` at `place`."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here: needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
