"""DeepSpeed's launcher: its arguments, its exit codes, and stopping it on this host."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import command_line, deepspeed
from tests.launch.conftest import ROOT, steps_logged
from tests.support.ports import free_port
from tests.support.processes import assert_gone, descendants
from tests.support.rank_processes import Command
from tests.support.slurm_cluster import wait_until
from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.errors import EXIT_STOPPED, EXIT_USER_ERROR

WORDS = [
    "run.dir=runs/one",
    "tracking.name=run(2)",
    "data.source=/d/Bob's",
    "run.dir=a&b",
    "tracking.name=$HOME",
    'tracking.name=$HOME `id` "quoted" \\" it\'s',
    "data.source=/d/with space\\",
]


@pytest.mark.seconds
def test_a_word_comes_through_the_shell_of_another_host() -> None:
    runner = pytest.importorskip("deepspeed.launcher.multinode_runner", reason="DeepSpeed is not installed").PDSHRunner
    arguments = SimpleNamespace(user_args=[deepspeed.remote_word(word) for word in WORDS])
    joined = " ".join(runner.parse_user_args(SimpleNamespace(args=arguments)))
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {joined}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == WORDS


def test_variables_reach_other_hosts_with_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DeepSpeed reads lines of NAME=VALUE, from one file only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DS_ENV_FILE", "mine")
    (tmp_path / "mine").write_text("WANDB_API_KEY=abc\n\nOMP_NUM_THREADS=7")
    with deepspeed._exported({"OMP_NUM_THREADS": "4", cores.OWN_THREADS: "1", "GLOO_SOCKET_IFNAME": "eth1"}):
        file = Path(os.environ["DS_ENV_FILE"])
        lines = file.read_text().splitlines()
    assert lines == ["OMP_NUM_THREADS=4", "GLOO_SOCKET_IFNAME=eth1", "WANDB_API_KEY=abc", "OMP_NUM_THREADS=7"]
    assert file.is_absolute() and not file.exists()
    assert "are passed on: put the rest, WANDB_API_KEY say, into ~/.deepspeed_env" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, 0), (2, 2), (75, 75), (129, 129), (130, 130), (138, 138), (143, 143)]
    + [(code, 1) for code in (1, 76, 134, 137, 247, -9)],
)
def test_the_exit_code_is_one_of_a_command(code: int, expected: int) -> None:
    assert deepspeed.exit_code(code, None) == expected


@pytest.mark.parametrize(("state", "expected"), [(None, 1), ("running", 1), ("finished", 0)])
def test_a_zero_is_none_while_the_run_has_not_ended(
    state: str | None, expected: int, recipe: Path, tmp_path: Path
) -> None:
    if state is not None:
        shutil.copy(recipe, tmp_path / "config.yaml")
        (tmp_path / "outcome.json").write_text(json.dumps({"state": state}))
        (tmp_path / "summary.json").write_text(json.dumps({"steps": 3}))  # there before the evaluation
    assert deepspeed.exit_code(0, tmp_path) == expected
    assert deepspeed.exit_code(2, tmp_path) == 2


@pytest.fixture
def two_hosts(tmp_path: Path) -> list[str]:
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    return ["--nodes", "2", "--nproc", "1", "--hostfile", str(tmp_path / "hosts")]


def test_without_pdsh_there_is_no_ssh(
    recipe: Path, two_hosts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert command_line._run(["deepspeed", str(recipe), *two_hosts], "launch") == EXIT_USER_ERROR
    assert "--nodes 2 over ssh needs the program pdsh, which is not on PATH" in capsys.readouterr().err


def test_deepspeed_is_found_without_its_program(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it was installed into another folder (pip install --user)."""
    commands: list[list[str]] = []
    prepared: list[Config] = []
    monkeypatch.setattr(deepspeed, "_run", lambda command, by_ssh, grace: commands.append(command) or 247)
    monkeypatch.setattr(deepspeed.preflight, "prepare_data", prepared.append)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["deepspeed", str(recipe), "--nproc", "1"]
    assert command_line._run(arguments, "launch") == 1
    (tmp_path / "deepspeed").touch()
    command_line._run(arguments, "launch")
    assert [config.engine for config in prepared] == ["deepspeed"] * 2  # before the ranks meet
    programs = [command[: command.index("--num_gpus=1")] for command in commands]
    assert programs == [[sys.executable, "-m", "deepspeed.launcher.runner"], [str(tmp_path / "deepspeed")]]


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
