"""How many cores this process may use: limited by its affinity mask and by the CPU quota of its control group.

More threads than the quota allows are worse than fewer: they use it up early, and all then wait for the next period.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

OWN_THREADS = "VGG_DDP_OWN_THREADS"  # in a rank's environment: our launcher computed OMP_NUM_THREADS


def usable(root: Path = Path("/")) -> int:
    """Whole cores that this process may use, at least 1.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, math.floor(min([len(os.sched_getaffinity(0)), *_quotas(root)])))


def openmp_threads() -> int | None:
    """The threads that a person asked for by OMP_NUM_THREADS; None where nobody did.

    If it is not set, torchrun sets it to 1 for each of several ranks: such a 1 was not asked for by a person.
    """
    if OWN_THREADS in os.environ:
        return None
    asked = (
        os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    )  # a list is one number for each nested level
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    return int(asked) if asked.isdigit() and int(asked) > by_torchrun else None


def control_groups(root: Path, mounts: dict[str, str]) -> Iterator[Path]:
    """The folders of this process's control groups and of those above them (cgroups v1 and v2).

    In a container the groups may be named as the host knows them; what is mounted is then the container's own.

    Args:
        root: where /proc and /sys are.
        mounts: where in /sys/fs/cgroup controllers are mounted, by their names in /proc/self/cgroup; "" is v2's.
    """
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in mounts:
                group = PurePosixPath(name.lstrip("/"))
                for folder in (group, *group.parents):
                    yield root / "sys/fs/cgroup" / mounts[controllers] / folder


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control groups and of those above them, in cores."""
    mounts = {"": "", "cpu": "cpu", "cpu,cpuacct": "cpu,cpuacct", "cpuacct,cpu": "cpu,cpuacct"}
    for folder in control_groups(root, mounts):
        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The quota of one control group, if it has one."""
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no quota
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError):
        quota = (folder / "cpu.cfs_quota_us").read_text()
        if int(quota) > 0:  # -1: no quota
            yield int(quota) / int((folder / "cpu.cfs_period_us").read_text())
