"""Whole runs with less memory: the same bits with recomputed activations, and after trials of what fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.rank_processes import Train
from tests.support.run_folders import assert_same_bits, metrics, state

WORDS = ("min_steps=4",)


@pytest.fixture(scope="module")
def plain(train: Train) -> Path:
    return train("as ever", *WORDS, size=2)


@pytest.mark.parametrize("what", ["normalisation", "stages"])
def test_activations_computed_again_give_the_same_bits(what: str, plain: Path, train: Train) -> None:
    run = train(f"again {what}", *WORDS, f"recompute={what}", size=2)
    for name in ("model", "optimizer"):
        assert_same_bits(run, plain, name)
    shutil.rmtree(run)


def test_the_trials_of_fit_memory_leave_no_trace_and_a_continued_run_keeps_its_number(
    plain: Path, train: Train
) -> None:
    """On two ranks. That too little memory makes more micro-batches is in test_fitting.py."""
    run = train("fitted", *WORDS, "fit_memory=true", "memory_share=0.5", size=2)
    measured = json.loads((run / "environment.json").read_text())["measured"]["accumulation"]
    assert measured["chosen"] == 1
    assert max(measured["bytes"].values()) < measured["limit_bytes"]
    for name in ("model", "optimizer"):
        assert_same_bits(run, plain, name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "accumulation": 2}))
    words = ("min_steps=6", "fit_memory=true", "memory_share=0.5", "resume=auto")
    again = train("fitted", *words, size=2)
    assert state(again)["step"] == 6
    assert yaml.safe_load((again / "config.yaml").read_text())["accumulation"] == 2
    assert metrics(again)
    shutil.rmtree(run)
