"""How many cores a process may use, under the control groups of containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import plan
from vgg_ddp import cores, preflight
from vgg_ddp.config import load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders.choice import with_cores

ALLOWED = len(os.sched_getaffinity(0))


def write(root: Path, files: dict[str, str]) -> Path:
    """Write a fake /proc and /sys."""
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
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/0a1b\n1:memory:/\n",  # the path as seen on the host
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


@pytest.mark.host
def test_a_process_in_such_a_group_counts_one_core(half_a_core: Path) -> None:
    code = f"open({str(half_a_core)!r}, 'w').write('0'); from vgg_ddp import cores; print(cores.usable())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, None),  # set by torchrun
        ({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"OMP_NUM_THREADS": "3", cores.OWN_THREADS: "1"}, None),  # set by our launchers
    ],
)
def test_openmp_s_variable_is_a_person_s_word(
    environment: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", cores.OWN_THREADS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores.openmp_threads() == threads


def test_and_is_the_threads_of_a_run_that_says_none(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    resolved = preflight.check_training(str(recipe), [f"run.dir={tmp_path}/run", "threads=auto"])
    assert (resolved.config.threads, resolved.choices[-1]) == (3, "threads: 3, as OMP_NUM_THREADS says")
    assert preflight.check_training(str(recipe), [f"run.dir={tmp_path}/run", "threads=2"]).config.threads == 2


@pytest.mark.parametrize(
    ("asked", "threads", "expected"),
    [
        (None, "auto", {"OMP_NUM_THREADS": "4", cores.OWN_THREADS: "1"}),
        ("3", "auto", {"OMP_NUM_THREADS": "3"}),
        ("3", 2, {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_a_launcher_s_own_choice_is_told_from_a_person_s(
    asked: str | None, threads: int | str, expected: dict[str, str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "usable", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert plan.environment(2, load(recipe, [f"threads={threads}"]), None) == expected


@pytest.mark.parametrize(
    ("device", "host", "ranks", "loading"),
    [
        ("cpu", 2, 1, 1),
        ("cpu", 2, 2, 1),
        ("cpu", 64, 2, 4),
        ("cuda", 2, 1, 1),
        ("cuda", 16, 1, 15),
        ("cuda", 96, 8, 11),
    ],
)
def test_cores_for_loading(device: str, host: int, ranks: int, loading: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two cores, which measured best; a GPU leaves the others free."""
    monkeypatch.setattr(cores, "usable", lambda: host)
    world = World(0, ranks, 0, ranks, torch.device(device), host_cores=host)
    assert world.cores_for_loading() == loading
    config = with_cores(DataConfig(workers=0), world)
    assert (config.workers, config.decode_threads) == (0, loading)
