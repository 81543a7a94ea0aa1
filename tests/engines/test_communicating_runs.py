"""Whole runs with the communication options: stopped and continued, validated, saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.rank_processes import Launch, Train, step
from tests.support.run_folders import assert_undisturbed, latest, metrics, state, stop

DILOCO = [f"communication.{key}" for key in ("synchronise_every=3", "outer_learning_rate=0.7", "outer_momentum=0.9")]
CHOICES = {
    "outer steps": [*DILOCO, "communication.compression=bf16"],
    "powersgd": ["communication.compression=powersgd", "communication.powersgd_warmup_steps=2"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_stopped_and_continued(name: str, train: Train, launch: Launch, runs: Path) -> None:
    """With batch norm, whose statistics are rank 0's. An epoch has eight steps, which is not a multiple of three."""
    words = (*CHOICES[name], "min_steps=12", "data.validation=0.2")
    whole = train(f"{name} whole", *words, size=2)
    run = runs / f"{name} stopped"
    stop(launch(run.name, *words, size=2, pause=step(4)), rank=1)
    stopped = state(run)
    assert 4 <= stopped["step"] < 12
    if name == "outer steps":
        assert stopped["step"] % 3 == 0
    assert_undisturbed(train(run.name, *words, "resume=auto", size=2), whole)
    shutil.rmtree(run)
    shutil.rmtree(whole)


def test_split_head_is_validated_saved_whole_and_continued_by_one_rank(train: Train, runs: Path) -> None:
    words = ("model.head=paper", "model.dropout=0", "data.image_size=32", "batch=4", "data.validation=0.2", "ema=0")
    run = train("split", *words, "communication.split_head=all", "min_steps=2", size=2)
    validation = [row for row in metrics(run) if row["split"] == "validation"]
    whole = train("not split", *words, "min_steps=2")
    for name in ("model", "optimizer"):
        ours, theirs = (load_file(latest(folder) / f"{name}.safetensors") for folder in (run, whole))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert validation[-1]["loss"] == pytest.approx(metrics(whole)[-1]["loss"], rel=0.05)
    resumed = train("split", *words, "min_steps=3", "resume=auto")
    assert state(resumed)["step"] == 3
    assert json.loads((resumed / "summary.json").read_text())["world_size"] == 1
    for folder in (run, whole):
        shutil.rmtree(folder)


def test_outer_steps_begin_in_a_run_that_one_rank_has_stopped_between_two(
    train: Train, launch: Launch, runs: Path
) -> None:
    """One rank takes none. Two continue from its step 4, and save and end with the outer steps after steps 6 and 9."""
    words = (*DILOCO, "min_steps=9")
    run = runs / "alone first"
    stop(launch(run.name, *words, pause=step(4)))
    assert state(run)["step"] == 4
    train(run.name, *words, "checkpoint.every_steps=3", "checkpoint.keep=9", "resume=auto", size=2)
    saved = sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))
    assert saved == [4, 6, 9]
    assert state(run)["engine"]["outer_steps"] == 9
    shutil.rmtree(run)
