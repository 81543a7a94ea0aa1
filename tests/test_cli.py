"""The command line: answers without importing torch; a mistake gets one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.rank_processes import vgg_ddp
from vgg_ddp.config.describe import describe_keys

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "vgg11_short.yaml")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, ""),
        (["train", "--help"], 0, describe_keys()),
        (["train", CONFIG, "epoch=3"], 2, ""),
        (["train", CONFIG, "engine=deepspeed", "deepspeed.config=nowhere.json"], 2, ""),
        (["dashboard", "--dry-run"], 0, ""),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_answers_without_importing_what_takes_seconds(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vgg_ddp", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and told in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "vgg_ddp.cli" in imported
    assert imported.isdisjoint({"torch", "numpy", "sklearn", "matplotlib", "deepspeed", "wandb"})


def truncated_archive(folder: Path) -> str:
    path = folder / "cut.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("train/cat/1.jpg")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(bytes(range(250)) * 400))
    path.write_bytes(path.read_bytes()[:-300])
    return str(path)


MISTAKES = {
    "unknown key": (["train", CONFIG, "epoch=3"], "did you mean 'epochs'"),
    "wrong type": (["train", CONFIG, "batch=many"], "'batch'"),
    "missing config": (["train", "configs/none.yaml"], "does not exist"),
    "missing source": (["train", CONFIG, "data.source=nowhere.tar"], "nowhere.tar does not exist"),
    "batch over ranks": (["train", CONFIG, "nproc=2", "batch=33"], "does not divide over 2 ranks"),
    "no command": (["trian"], "invalid choice"),
    "no run": (["evaluate", "nothing"], "neither a run directory"),
    "no run to compare": (["report", "nothing", "nothing either"], "nothing is neither a run directory"),
    "out for one run": (["report", "nothing", "--out", "page.html"], "--out is for runs side by side"),
    "no dataset": (["verify", "nothing"], "neither a run directory"),
    "no option": (["evaluate", "nothing", "--protocl", "dense"], "unrecognized arguments: --protocl"),
    "no word": (["verify", "nothing", "batch=3"], "unrecognized arguments: batch=3"),
    "a word behind an option": (["study", CONFIG, "--learning-rate", "epoch=3"], "did you mean 'epochs'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name: str, tmp_path: Path) -> None:
    words, told = MISTAKES[name]
    done = vgg_ddp(*words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vgg-ddp: ") and told in line
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_archive_leaves_nothing_prepared(tmp_path: Path) -> None:
    done = vgg_ddp("prepare", truncated_archive(tmp_path), "--out", "dataset", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cut.tar.gz"]


def test_two_ranks_tell_a_mistake_once(tmp_path: Path) -> None:
    """One that only the ranks can find: fewer training images than one batch."""
    words = ["data.source=digits", "batch=4096", "device=cpu", "nproc=2", "run.dir=run"]
    command = [sys.executable, "-m", "vgg_ddp", "train", CONFIG, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.count("fewer than one batch of 4096") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_not_used_twice(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("network: vgg11\n")
    done = vgg_ddp("train", CONFIG, "data.source=digits", "run.dir=run", folder=tmp_path)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr and "resume=auto" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    small = ["data.source=digits", "batch=32", "epochs=0.01", "min_steps=1", "device=cpu", "nproc=1", "run.dir=run"]
    small += ["data.validation=0", "data.train_sizes=[]", "analysis.budget=none"]
    done = vgg_ddp("train", CONFIG, *small, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (["train", CONFIG, *small, "resume=auto", "network=vgg13"], ["evaluate", "run", "network=vgg13"]):
        done = vgg_ddp(*words, folder=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "network" in line and "vgg11" in line
    assert vgg_ddp("verify", "run", folder=tmp_path).returncode == 0
    assert vgg_ddp("doctor", folder=tmp_path).returncode == 0


def test_a_run_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = vgg_ddp("train", CONFIG, "data.source=digits", "run.dir=file/run", "nproc=1", folder=tmp_path)
    assert done.returncode == 2
    assert "file/run" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
