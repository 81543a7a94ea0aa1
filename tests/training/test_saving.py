"""Saving in the background: it writes the state at the call, one save after another, and reports errors."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.rank_processes import Train
from vgg_ddp.config.schema import CheckpointConfig
from vgg_ddp.distributed.activity import Activity, where
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import StoppedOnRequest, UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.training.saving import Saver


def save(saver: Saver, step: int, best: bool = False) -> None:
    saver.save({"w": torch.ones(3)}, {}, State(step=step), None, best)


def before_writing(monkeypatch: pytest.MonkeyPatch, wait: Callable[[int], object]) -> None:
    """Make the real writer first call `wait` with the step."""
    write = checkpoint.write

    def write_later(directory: Path, files: checkpoint.Files, step: int) -> Path:
        wait(step)
        return write(directory, files, step)

    monkeypatch.setattr(checkpoint, "write", write_later)


def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    before_writing(monkeypatch, lambda step: go_on.wait(60))
    saver, state = Saver(tmp_path, CheckpointConfig(keep=1), ALONE), State(step=1, engine={"scaler": {"scale": 2.0}})
    tensors = {name: torch.full((4,), 1.0) for name in ("model", "optimizer", "ema")}
    saver.save(*({name: tensors[name]} for name in ("model", "optimizer")), state, {"ema": tensors["ema"]}, False)
    for tensor in tensors.values():  # the training goes on
        tensor.zero_()
    state.step, state.engine["scaler"]["scale"] = 2, 3.0
    assert not (tmp_path / "latest").exists()
    go_on.set()
    saver.finish()
    folder = tmp_path / "step-00000001"
    assert all(load_file(folder / f"{name}.safetensors")[name].tolist() == [1.0] * 4 for name in tensors)
    assert checkpoint.state(checkpoint.read(folder)) == State(step=1, engine={"scaler": {"scale": 2.0}})


def test_a_failure_in_it_is_told_with_the_step_that_is_saved(tmp_path: Path) -> None:
    """Within an epoch, the loader, which announces the step, has not yet been asked for the next batch."""
    activity = Activity()
    activity.enter("step", 7)
    saver = Saver(tmp_path, CheckpointConfig(), dataclasses.replace(ALONE, activity=activity))
    save(saver, 8)
    assert where(activity.seen()) == "while it saved step 8"
    saver.finish()
    assert where(activity.seen()) == "while it saved step 8"


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second, overlapped = threading.Event(), []

    def wait(step: int) -> None:
        second.set() if step == 2 else overlapped.append(second.wait(0.3))

    before_writing(monkeypatch, wait)
    with Saver(tmp_path, CheckpointConfig(keep=2), ALONE) as saver:
        save(saver, 1)
        save(saver, 2)
    assert overlapped == [False]
    assert [folder.name for folder in checkpoint.find(tmp_path)] == ["step-00000002", "step-00000001"]


def test_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    with Saver(tmp_path, CheckpointConfig(keep=1), ALONE) as saver:
        for step in (1, 2, 3):
            save(saver, step, best=step == 1)
    assert (tmp_path / "best").read_text() == "step-00000001"
    assert [folder.name for folder in checkpoint.find(tmp_path)] == ["step-00000003", "step-00000001"]


@pytest.fixture
def unwritable(tmp_path: Path) -> Saver:
    """A saver whose folder would have to be created below a file."""
    (tmp_path / "file").write_text("")
    return Saver(tmp_path / "file" / "checkpoints", CheckpointConfig(), ALONE)


def test_an_error_is_told_by_the_next_save_or_at_the_end(unwritable: Saver) -> None:
    save(unwritable, 1)
    with pytest.raises(UserError, match=r"step-00000001 cannot be written"):
        save(unwritable, 2)
    unwritable.finish()
    save(unwritable, 3)
    with pytest.raises(UserError, match=r"step-00000003 cannot be written"):
        unwritable.finish()


def test_one_that_cannot_be_written_may_be_gone_on_without_but_not_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file" / "checkpoints"
    place.parent.write_text("")
    saver = Saver(place, CheckpointConfig(on_error="continue"), ALONE)
    save(saver, 1)
    save(saver, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vgg-ddp: checkpoint ") and line.endswith("; going on") and "step-00000001" in line
    with pytest.raises(UserError, match=r"step-00000002 cannot be written"):
        saver.finish()
    place.parent.unlink()
    save(saver, 3)
    saver.finish()
    assert [folder.name for folder in checkpoint.find(place)] == ["step-00000003"]


@pytest.mark.parametrize(("later", "best"), [(False, "step-00000001"), (True, "step-00000002")])
def test_the_best_that_could_not_be_written_is_written_with_the_next(later: bool, best: str, tmp_path: Path) -> None:
    """Later ones are compared with it, and it may be what is evaluated; a better one takes its place."""
    place = tmp_path / "file" / "checkpoints"
    place.parent.write_text("")
    saver = Saver(place, CheckpointConfig(on_error="continue", keep=1), ALONE)
    save(saver, 1, best=True)
    saver._writing.exception()  # type: ignore[union-attr]
    place.parent.unlink()
    save(saver, 2, best=later)
    saver.finish()
    assert (place / "best").read_text() == best
    assert checkpoint.named(place, "latest") == place / "step-00000002"


@pytest.mark.parametrize(("raised", "told"), [(StoppedOnRequest, UserError), (MemoryError, MemoryError)])
def test_a_stop_is_one_only_once_its_checkpoint_is_written(
    raised: type[BaseException], told: type[BaseException], unwritable: Saver
) -> None:
    with pytest.raises(told), unwritable:
        save(unwritable, 1)
        raise raised


@pytest.mark.parametrize("raised", [StoppedOnRequest, MemoryError])
def test_whatever_ends_the_training_finds_the_checkpoint_whole(
    raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    before_writing(monkeypatch, lambda step: began.wait(0.1))  # longer than it takes to leave
    with pytest.raises(raised), Saver(tmp_path, CheckpointConfig(keep=1), ALONE) as saver:
        save(saver, 1)
        raise raised
    checkpoint.read(tmp_path / (tmp_path / "latest").read_text())


def test_not_every_epoch_is_saved(train: Train) -> None:
    """Five epochs of one step, of which every second and the last are saved."""
    words = ("data.validation=0.8", "evaluate.every_epochs=9", "min_steps=5", "checkpoint.every_epochs=2")
    run = train("seldom", *words, "checkpoint.keep=9")
    assert [folder.name for folder in checkpoint.find(run / "checkpoints")] == [
        f"step-{step:08d}" for step in (5, 4, 2)
    ]
