"""A run whose learning rate follows its validations, stopped between two of them and continued elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.support.rank_processes import Launch, step
from tests.support.run_folders import metrics, state, stop

# Epochs of two steps. No accuracy can gain more than 1, so the second validation already counts as no better.
WORDS = ("batch=64", "data.validation=0.2", "min_steps=40", "schedule.name=plateau", "schedule.patience=1")
WORDS += ("schedule.min_delta=1",)


def test_the_rates_and_the_end_survive_a_stop_in_mid_epoch_another_world_size_and_another_engine(
    launch: Launch, runs: Path
) -> None:
    words = ("engine=deepspeed", "deepspeed.stage=1") if importlib.util.find_spec("deepspeed") else ()
    stop(launch("moved", *WORDS, pause=step(7)))
    assert state(runs / "moved")["step_in_epoch"] == 1
    ranks = launch("moved", *WORDS, *words, "resume=auto", size=2)
    assert ranks.wait() == [0, 0], ranks.stderr
    rates = [row["lr"] for row in metrics(runs / "moved") if row["scope"] == "steps"]
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2 + [0.0001] * 2 + [0.00001] * 2)
    found = state(runs / "moved")
    assert (found["step"], found["stopped"], len(found["accuracies"])) == (10, True, 5)
    assert ranks.stdout.count("no better for 1 validation: the learning rate is multiplied by 0.1") == 1
    assert ranks.stdout.count("no better for 1 validation: the training ends") == 1


def test_without_an_image_to_validate_on_it_is_refused_before_the_first_step(launch: Launch, runs: Path) -> None:
    ranks = launch("none", *WORDS, "data.validation=0.001")
    assert ranks.wait() == [2]
    (line,) = ranks.stderr.splitlines()
    assert "schedule.name=plateau needs images to validate on" in line and "raise data.validation" in line
    assert not (runs / "none").exists()
