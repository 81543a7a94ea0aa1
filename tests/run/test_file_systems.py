"""File systems as on clusters: without an atomic exchange, without locks, without flushing folders, read-only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.rank_processes import apart
from vgg_ddp import cli
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.run import checkpoint, files
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.directory import RunDirectory


class OfNetworkFileSystem:
    """A C library whose renameat2 fails as on NFS."""

    def renameat2(self, *arguments: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


def test_folders_are_exchanged_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: OfNetworkFileSystem())
    files.exchange(tmp_path / "one", tmp_path / "other")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == ["one/other", "other/one"]
    assert "cannot exchange folders in one step" in capsys.readouterr().out


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_kill_between_the_renames_of_an_exchange_loses_no_checkpoint(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that needs three renames: a step is saved a second time, interrupted, and saved once more."""
    saved = checkpoint.encode({"w": torch.ones(2)}, {}, State(step=3), None)
    checkpoint.write(tmp_path, saved, 3)
    done: list[object] = []
    rename = os.rename

    def killed(one: Path, other: Path) -> None:
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append(one)
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda *_, **__: OfNetworkFileSystem())
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write(tmp_path, saved, 3)
    assert len(list(tmp_path.glob(".exchanging-step-*"))) == 1
    files.recover_exchanged(tmp_path)
    (newest,) = checkpoint.find(tmp_path)
    checkpoint.read(newest)
    assert not list(tmp_path.glob(".exchanging-step-*"))
    checkpoint.write(tmp_path, saved, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003"]


def test_a_folder_that_cannot_be_flushed_is_none_of_ours() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(os.open("/proc", os.O_RDONLY))
    files.sync_directory(Path("/proc"))


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS without a lock server, and on Lustre mounted without locks."""

    def no_lock(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", no_lock)


@pytest.mark.usefixtures("no_locks")
def test_a_run_without_a_lock_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory(tmp_path / "run").claimed(new=True):
        assert (tmp_path / "run" / "checkpoints").is_dir()
        assert capsys.readouterr().out.count("without locks") == 1
        with RunDirectory(tmp_path / "run").claimed(new=True):  # no lock is held, so a kill leaves none behind
            assert capsys.readouterr().out.count("without locks") == 1


@pytest.mark.usefixtures("no_locks")
def test_without_locks_nobody_waits(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "lock", "waiting", pytest.fail),
        files.locked(tmp_path / "lock", "waiting", pytest.fail),
    ):
        assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.usefixtures("no_locks")
def test_a_data_set_prepared_without_a_lock_is_whole_and_that_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    directory, _ = ensure(DataConfig(source="digits", directory=str(tmp_path)), lines.append)
    assert Dataset(directory).verify()
    word = f"{tmp_path} is on a file system without locks: see to it that no other process writes there"
    assert (lines[0], len(lines)) == (word, 2)


def test_a_wait_for_another_preparation_is_told_and_can_be_interrupted(tmp_path: Path) -> None:
    lines: list[str] = []

    def told(line: str) -> None:
        lines.append(line)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with (tmp_path / ".digits.lock").open("w") as held, pytest.raises(KeyboardInterrupt):
            fcntl.flock(held, fcntl.LOCK_EX)
            ensure(DataConfig(source="digits", directory=str(tmp_path)), told)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert lines == [f"waiting for another process that prepares {tmp_path}/digits"]


def test_a_place_that_cannot_be_written_is_told_with_another(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert "--out FOLDER" in apart(_told_as_nobody, tmp_path / "run")
    tmp_path.chmod(0o755)
    RunDirectory(tmp_path / "run").must_be_writable()


def _told_as_nobody(path: Path) -> str:
    if os.getuid() == 0:
        os.setuid(65534)
    else:
        path.parent.chmod(0o500)
    try:
        RunDirectory(path).must_be_writable()
    except UserError as error:
        return str(error)
    return ""


def test_a_folder_that_holds_something_is_never_removed(tmp_path: Path) -> None:
    """Even if it has no config.yaml, by which a run is recognised."""
    run = RunDirectory(tmp_path / "run")
    with run.claimed(new=True):
        (run.checkpoints / "step-00000001").mkdir()
    assert (run.checkpoints / "step-00000001").is_dir()
    empty = RunDirectory(tmp_path / "empty")
    with empty.claimed(new=True):
        assert empty.checkpoints.is_dir()
    assert not empty.path.exists()


@pytest.mark.parametrize("words", [["evaluate"], ["verify"], ["report"], ["table"]], ids=lambda words: words[0])
def test_a_name_that_no_folder_can_have_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "x" * 300]) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vgg-ddp: " + "x" * 300)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may enter every folder")
@pytest.mark.parametrize("words", [["evaluate"], ["verify"], ["report"], ["table"]], ids=lambda words: words[0])
def test_a_folder_that_may_not_be_entered_is_one_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "closed" / "run").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    command = [sys.executable, "-m", "vgg_ddp", *words, str(tmp_path / "closed" / "run")]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / "closed").chmod(0o700)
    assert done.returncode == EXIT_USER_ERROR, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vgg-ddp: {tmp_path}/closed/run")
