"""Every command in the README and in docs/ runs. Long ones are cut short by words at their end; eight GPUs become two ranks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.source=digits", "batch=32", "nproc=2", "epochs=0.05", "data.validation=0.05", "evaluate.checkpoint=last"]


def commands() -> list[str]:
    """The lines of the shell blocks of the README, then of docs/."""
    texts = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    blocks = [block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    return [line for block in blocks for line in block.splitlines() if line]


def of(program: str) -> list[str]:
    return [line for line in commands() if line.startswith(program)]


def run(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout's, with the configs."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def test_every_command_is_of_a_kind_that_is_run_here() -> None:
    known = {"make", "vgg-ddp", "torchrun"}
    assert {line.split()[0] for line in commands()} == known
    assert len(of("vgg-ddp")) >= 8


def test_vgg_ddp_commands_run_in_their_order(folder: Path) -> None:
    for line in of("vgg-ddp"):
        words = shlex.split(line)
        if words[1] == "train" and "--help" not in words:
            words += SMALL
        run(words, folder)
    assert (folder / "runs/vgg11/report/index.html").is_file()


def test_torchrun_on_two_hosts_runs(folder: Path) -> None:
    (line,) = of("torchrun")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = line.replace("HOST:29500", f"127.0.0.1:{port}").replace("--nproc-per-node 8", "--nproc-per-node 1")
    words = [str(Path(sys.executable).parent / "torchrun"), *shlex.split(line)[1:], *SMALL]
    hosts = [
        subprocess.Popen([*words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    assert (folder / "runs/vgg16-hosts/report/index.html").is_file()


@pytest.mark.parametrize("line", of("make train"))
def test_make_train_runs(line: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv/installed").is_file():
        pytest.skip("make has not made .venv here")
    words = [word for word in shlex.split(line) if not word.startswith(("DATA=", "ARGS="))]
    extra = [*SMALL, "epochs=0.05", f"data.directory={tmp_path}/datasets"]
    run([*words, "DATA=digits", f"RUN={tmp_path}/run", f"ARGS={' '.join(extra)}"], ROOT)
    assert (tmp_path / "run/report/index.html").is_file()
    assert (tmp_path / "run/evaluation/summary.json").is_file()


def test_make_test_is_what_ci_runs() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in commands()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
