"""An installed package: `launch` is in it as `vgg_ddp.launch`, and nothing has a general name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from vgg_ddp.errors import EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, in a folder of their own."""
    build, site = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", build, "build", "--build-base", build]
    command += ["bdist_wheel", "--bdist-dir", build / "wheel", "--dist-dir", build]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = build.glob("*.whl")
    with ZipFile(wheel) as contents:
        contents.extractall(site)
    return site


def installed(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in `folder`, with the installed package before any other."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_no_module_has_a_general_name(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert names == {"vgg_ddp"}


def test_every_module_and_template_of_the_checkout_is_installed(site: Path) -> None:
    sources = {
        Path("vgg_ddp") / path.relative_to(ROOT if folder == "launch" else ROOT / folder)
        for folder in ("vgg_ddp", "launch")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {path for path in sources if not (site / path).is_file()} == set()


def test_the_installed_command_starts_what_the_checkouts_starts(site: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("network: vgg11\n")
    start = ["-m", "vgg_ddp", "launch", "torchrun", "config.yaml", "--nproc", "2", "batch=64"]
    done = installed(site, tmp_path, *start, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "batch 64 = 1 node x 2 ranks x 32 images" in done.stdout
    shown = installed(site, tmp_path, "-m", "vgg_ddp", "launch", "--help")
    assert shown.stdout.startswith("usage: vgg-ddp launch ")
    refused = installed(site, tmp_path, *start, "batsh=1")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (EXIT_USER_ERROR, 1)
    job = installed(site, tmp_path, "-m", "vgg_ddp", "launch", "slurm", "config.yaml", "--nproc", "2", "--dry-run")
    assert f"{sys.executable} -m vgg_ddp.launch torchrun config.yaml" in job.stdout
    assert "#SBATCH --cpus-per-task=2\n" in job.stdout


def test_the_command_line_imports_no_torch(site: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("network: vgg11\n")
    code = "import sys; from vgg_ddp.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = installed(site, tmp_path, "-c", code, "launch", "torchrun", "config.yaml", "--nproc", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
