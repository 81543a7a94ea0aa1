"""A rank that runs out of memory ends all, with one line that says what to do."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.support.rank_processes import Ranks
from vgg_ddp import train
from vgg_ddp.distributed import memory
from vgg_ddp.distributed.world import ALONE
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


MEMORY = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 900 kB\n"}
GROUPS = {
    "none": ({"proc/self/cgroup": "0::/\n"}, 1000, 900),
    "v2, of a job, most of it cached files": (
        {
            "proc/self/cgroup": "0::/slurm/job1/step0\n",
            "sys/fs/cgroup/slurm/job1/step0/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job1/memory.max": "512000\n",
            "sys/fs/cgroup/slurm/job1/memory.current": "500000\n",
            "sys/fs/cgroup/slurm/job1/memory.stat": "anon 90000\ninactive_file 300000\nactive_file 97600\n",
        },
        500,
        400,
    ),
    "v1, of a container, as the host knows it": (
        {
            "proc/self/cgroup": "9:memory:/docker/0a1b\n4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "204800\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "153600\n",
            "sys/fs/cgroup/memory/memory.stat": "active_file 0\ntotal_active_file 51200\ntotal_inactive_file 51200\n",
        },
        200,
        150,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_control_group_limits_memory_and_cached_files_are_free(name: str, tmp_path: Path) -> None:
    """In KiB."""
    files, total, free = GROUPS[name]
    for file, text in (MEMORY | files).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert memory.total_bytes(ALONE, tmp_path) == total * 1024
    assert memory.available_bytes(ALONE, tmp_path) == free * 1024
