"""A rank that runs out of memory ends all, with one line that says what to do."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from tests.support.rank_processes import Ranks
from vgg_ddp import train
from vgg_ddp.errors import EXIT_USER_ERROR

ROOM = 2**24  # bytes, beyond what the process has at its first step


def with_little_memory_on_rank_one(arguments: list[str]) -> int:
    loop = train.train

    def limited(*parts: Any) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        loop(*parts)

    if os.environ["RANK"] == "1":
        train.train = limited
    return train.main(arguments)


def test_one_rank_without_memory_ends_both(recipe: Path, runs: Path) -> None:
    """In a step of 32 images of 64 pixels, whose first convolution has outputs of 34 MB."""
    words = [str(recipe), f"run.dir={runs / 'exhausted'}", "nproc=2", "batch=64", "data.resize=64", "min_steps=4"]
    ranks = Ranks(with_little_memory_on_rank_one, ([*words, "data.image_size=64"],), 2, runs / "output")
    assert ranks.wait() == [EXIT_USER_ERROR] * 2, ranks.stderr
    (line,) = ranks.stderr.splitlines()
    assert line.startswith("vgg-ddp: rank 1 ran out of memory: it has too little for a step; use fit_memory=true")
