"""DeepSpeed's launcher on this host, stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, steps_logged
from tests.support.ports import free_port
from tests.support.processes import assert_gone, descendants
from tests.support.rank_processes import Command
from tests.support.slurm_cluster import wait_until
from vgg_ddp.errors import EXIT_STOPPED


def test_a_stop_signal_lets_the_ranks_save(config: Path, disk: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = disk / "deepspeed stopped"
    words = [str(config), "--nproc", "2", "--master-port", str(free_port()), f"run.dir={run}", "min_steps=100000"]
    words += ["--grace", "300"]  # however busy the machine is
    launch = Command("launch", "deepspeed", *words, folder=ROOT)
    wait_until(lambda: steps_logged(run) >= 2)
    processes = descendants(launch.pid)
    assert len(processes) >= 4  # the launcher, its agent, two ranks
    launch.send_signal(signal.SIGTERM)
    _, said = launch.communicate(600)
    assert launch.returncode == EXIT_STOPPED, said
    assert "launch: stopped by SIGTERM; the ranks are asked to save\n" in said
    assert_gone(processes)
    assert json.loads((run / "outcome.json").read_text())["state"] == "stopped"
    assert (run / "checkpoints" / "latest").is_file()
