"""How many cores a process may use, under the control groups of containers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgg_ddp import cores

ALLOWED = len(os.sched_getaffinity(0))


def write(root: Path, files: dict[str, str]) -> Path:
    """A made-up /proc and /sys."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CASES = {
    "no control groups": ({}, ALLOWED),
    "v2, half a core": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "v2, no quota": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, ALLOWED),
    "v2, the group above has one": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 1000", "sys/fs/cgroup/a/cpu.max": "1000 1000"},
        1,
    ),
    "v1, one core and a half": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/0a1b\n1:memory:/\n",  # as the host knows it
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        1,
    ),
    "v1, no quota": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        ALLOWED,
    ),
    "more than there is": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, ALLOWED),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_quota_counts_in_whole_cores(name: str, tmp_path: Path) -> None:
    files, expected = CASES[name]
    assert cores.usable(write(tmp_path, files)) == expected


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of this machine with a quota of half a core; its file that takes processes."""
    for parent, quota in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        group = Path(parent) / f"vgg_ddp-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / quota).exists():
            (group / quota).write_text("50000" if quota == "cpu.cfs_quota_us" else "50000 100000")
            yield group / "cgroup.procs"
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control group can be made here")


@pytest.mark.host
def test_a_process_in_such_a_group_counts_one_core(half_a_core: Path) -> None:
    code = f"open({str(half_a_core)!r}, 'w').write('0'); from vgg_ddp import cores; print(cores.usable())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
