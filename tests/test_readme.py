"""Every command in the README and on its pages runs.

Long ones are cut short by overrides added at their end, and eight GPUs become two ranks.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import filterfalse
from pathlib import Path

import pytest

from tests.support.pictures import encode, smooth, write_folder
from tests.support.ports import free_port
from tests.support.rank_processes import Command, program, vgg_ddp

pytestmark = [pytest.mark.slow, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SMALL = [
    "network=vgg_tiny",
    "data.image_size=16",
    "batch=32",
    "epochs=0.1",
    "data.validation=0.1",
    "data.train_sizes=[]",
    "min_steps=1",
    "evaluate.checkpoint=last",
    "device=cpu",
    "threads=1",
]


def commands(page: str = "README.md") -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def of(program: str, page: str = "README.md") -> list[str]:
    return [line for line in commands(page) if line.startswith(program)]


def run(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, with the configs, the packages that are not installed, and a folder with a photo."""
    folder = tmp_path_factory.mktemp("readme")
    write_folder(folder / "photos", {"me.jpg": encode(smooth(300, 200, 0))})
    shutil.copytree(ROOT / "configs", folder / "configs")
    for package in ("launch", "benchmarks"):
        (folder / package).symlink_to(ROOT / package)
    return folder


def test_every_command_is_of_a_kind_that_is_run_here() -> None:
    known = {"make", "vgg-ddp", "python"}
    assert {line.split()[0] for page in PAGES for line in commands(page)} == known
    assert len(of("vgg-ddp")) >= 8


def starts_hosts(line: str) -> bool:
    """Whether a command is to be started on several hosts, and not only printed."""
    return line.startswith("vgg-ddp launch torchrun") and "--dry-run" not in line


# test_notebook.py runs the tutorial's
@pytest.mark.parametrize("page", [page for page in PAGES if of("vgg-ddp", page) and page != "docs/tutorial.md"])
def test_vgg_ddp_commands_run_in_their_order(page: str, few_digits: Path, folder: Path) -> None:
    small = [*SMALL, f"data.source={few_digits}"]
    if page not in ("README.md", "docs/report.md"):  # the other pages do not need the search for causes
        small += ["analysis.budget=none"]
    for line in filterfalse(starts_hosts, of("vgg-ddp", page)):
        words = shlex.split(line)
        if words[1] == "train" and "--help" not in words:
            words += [*small, "nproc=2" if "nproc" in line else "nproc=1"]
        done = vgg_ddp(*words[1:], folder=folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        run_folder = next((folder / word.partition("=")[2] for word in words if word.startswith("run.dir=")), None)
        assert run_folder is None or (run_folder / "report/index.html").is_file()
        if words[1] == "launch":
            assert "batch " in done.stdout
        if "--images" in words:
            assert list(folder.glob("runs/*/images/*/index.html"))
        if words[1] == "report" and len(words) > 3:
            assert list(folder.glob("runs/*/report/comparison.html"))


def test_training_on_two_hosts_runs(few_digits: Path, folder: Path) -> None:
    (line,) = filter(starts_hosts, of("vgg-ddp launch"))
    line = line.replace("HOST:29500", f"127.0.0.1:{free_port()}").replace("--nproc 8", "--nproc 1")
    words = [*shlex.split(line)[1:], f"data.source={few_digits}", *SMALL, "nproc=1"]
    hosts = [Command("vgg_ddp", *words, folder=folder) for _ in range(2)]
    outputs = ["".join(host.communicate(600)) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    assert (folder / "runs/vgg16-hosts/report/index.html").is_file()


@pytest.mark.parametrize("line", of("python -m benchmarks", "docs/benchmarks.md"))
def test_benchmarks_run(line: str, folder: Path) -> None:
    _, _, module, *words = shlex.split(line)
    done = program(module, *words, folder=folder)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("line", of("make train"))
def test_make_train_runs(line: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv/installed").is_file():
        pytest.skip("make has not made .venv here")
    words = [word for word in shlex.split(line) if not word.startswith(("DATA=", "ARGS="))]
    extra = ["data.source=digits", *SMALL, "nproc=1", f"data.directory={tmp_path}/datasets"]
    run([*words, "DATA=digits", f"RUN={tmp_path}/run", f"ARGS={' '.join(extra)}"], ROOT)
    assert (tmp_path / "run/report/index.html").is_file()
    assert (tmp_path / "run/evaluation/summary.json").is_file()


def test_make_test_is_what_ci_runs() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in commands()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert targets
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []
