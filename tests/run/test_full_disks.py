"""A disk that is full, wherever that begins: one line, and a checkpoint that is whole or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disks import disk_of
from tests.support.rank_processes import start
from vgg_ddp.errors import EXIT_USER_ERROR
from vgg_ddp.run import checkpoint

pytestmark = [pytest.mark.processes]


@pytest.mark.parametrize(
    ("size", "file", "kept"),
    [
        ("4k", "run cannot", None),
        ("16k", "run/", None),
        ("28k", "run/", None),
        ("8m", "checkpoints/step-00000002", None),
        ("24m", "checkpoints/step-00000004", "step-00000002"),
    ],
)
def test_a_full_disk_is_one_line(size: str, file: str, kept: str | None, recipe: Path, tmp_path: Path) -> None:
    with disk_of(size, tmp_path / "disk") as disk:
        words = [str(recipe), f"run.dir={disk}/run", "min_steps=4", "checkpoint.every_steps=2"]
        ranks = start("vgg_ddp.train", words, 1, tmp_path / "output")
        assert ranks.wait() == [EXIT_USER_ERROR], ranks.stderr
        (line,) = ranks.stderr.splitlines()
        assert "cannot be written: No space left on device" in line
        assert file in line
        found = checkpoint.read_newest(disk / "run" / "checkpoints")
        assert (found[0].name if found else None) == kept
