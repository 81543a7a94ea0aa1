"""A training that diverges says so and ends: nothing of it is saved, marked best, or logged as invalid JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.rank_processes import Launch, Train
from vgg_ddp.config import Config
from vgg_ddp.config.schema import CheckpointConfig
from vgg_ddp.distributed.world import ALONE, SharedUserError, World
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.training.recorder import Recorder
from vgg_ddp.training.saving import Saver
from vgg_ddp.training.stopping import note_validation


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} in JSON")


def test_two_ranks_end_with_one_line(launch: Launch, runs: Path) -> None:
    words = ("optimizer.learning_rate=1e30", "min_steps=20", "data.validation=0.1", "checkpoint.every_steps=1")
    ranks = launch("diverging", *words, size=2)
    assert ranks.wait() == [EXIT_USER_ERROR] * 2, ranks.stderr
    (line,) = ranks.stderr.splitlines()
    assert "the training has diverged; set resume=auto" in line
    assert re.search(r"first layer that is not finite: the output of features\.\d+ \(\w+\), in step \d+\)", line)
    rows = [
        json.loads(row, parse_constant=no_constant)
        for row in (runs / "diverging/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) < 20
    assert not (runs / "diverging/checkpoints/best").exists()
    assert not (runs / "diverging/evaluation").exists()


@pytest.fixture(scope="module")
def begun(train: Train) -> Path:
    """A checkpoint after one step."""
    return next((train("begin with", "min_steps=1") / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("size", [1, 2])
def test_the_first_layer_that_is_not_finite_is_named(size: int, begun: Path, launch: Launch, runs: Path) -> None:
    """A layer whose weights are finite but far too large, in the first step; all layers before it are fine."""
    weights = load_file(begun / "model.safetensors")
    layer = [name for name in weights if name.startswith("features") and weights[name].ndim == 4][3]
    weights[layer] = torch.full_like(weights[layer], 3e38)
    save_file(weights, runs / f"too large {size}.safetensors")
    words = (f"model.initialize_from={runs / f'too large {size}.safetensors'}", "min_steps=20", "log.every_steps=4")
    ranks = launch(f"too large {size}", *words, size=size)
    assert ranks.wait() == [EXIT_USER_ERROR] * size, ranks.stderr
    name = layer.removesuffix(".weight")
    assert re.search(rf"first layer that is not finite: the output of {name} \(\w+\), in step 1\)", ranks.stderr)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Whatever the loss before them was."""
    with (
        pytest.raises(UserError, match="w is not finite after step 3, which is not saved"),
        Saver(tmp_path, CheckpointConfig(), World(0, 1, 0, 1, torch.device("cpu"))) as saver,
    ):
        saver.save({"w": torch.tensor([1.0, torch.nan])}, {}, State(step=3), None, best=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_has_no_finite_loss_is_never_the_best(loss: float) -> None:
    state = State(epoch=1)
    assert not note_validation(Config(), state, 0.9, loss)
    assert note_validation(Config(), state, 0.1, 2.0)
    assert state.accuracies == [0.0, 0.1]


@pytest.mark.parametrize("finite_at", [None, 15])
def test_in_half_precision_a_loss_that_is_never_finite_again_ends_the_training(finite_at: int | None) -> None:
    """A lower scale of the loss cures gradients that overflow; not a loss, which it does not scale."""
    state = State()
    progress = TrainingProgress(100, 0, shown=False)
    recorder = Recorder(state, ALONE, 2, 50, 100, None, progress, may_overflow=True)

    def take_steps(until: int) -> None:
        while state.step < until:
            state.step += 1
            loss = torch.tensor(1.0 if state.step == finite_at else torch.nan)
            recorder.add(loss, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
            recorder.step_done(0.1, every_steps=5)

    take_steps(19)
    if finite_at is None:
        with pytest.raises(SharedUserError, match="the loss of steps 1 to 20 is not finite"):
            take_steps(20)
    else:
        take_steps(34)
        with pytest.raises(SharedUserError, match="the loss of steps 16 to 35 is not finite"):
            take_steps(35)
