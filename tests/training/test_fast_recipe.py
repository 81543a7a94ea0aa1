"""All options of a fast training at once: two ranks agree, and a stopped run continues with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.rank_processes import Launch, Train, step
from tests.support.run_folders import assert_undisturbed, latest, stop

WORDS = (
    "optimizer.name=muon",
    "optimizer.muon_rate=0.1",
    "optimizer.bias_rate=4",
    "model.whiten=true",
    "model.initialization=dirac",
    "model.activation=gelu",
    "model.pool_before_norm=true",
    "model.norm_scale=false",
    "model.norm_momentum=0.4",
    "model.logit_scale=0.5",
    "ema=0.7",
    "lookahead=5",
    "network=vgg_tiny",
    "data.image_size=16",
    "schedule.name=one_cycle",
    "schedule.peak_at=0",
    "min_steps=10",
)


@pytest.fixture(scope="module")
def whole(train: Train) -> Path:
    """On two ranks."""
    return train("fast", *WORDS, size=2)


def test_it_goes_on_with_the_same_bits(whole: Path, launch: Launch, train: Train, runs: Path) -> None:
    """Before a step of the lookahead, when the averaged weights are not the network's."""
    stop(launch("fast stopped", *WORDS, size=2, pause=step(2)), rank=1)
    stopped = latest(runs / "fast stopped")
    model, average = (load_file(stopped / f"{name}.safetensors") for name in ("model", "ema"))
    assert not torch.equal(model["classifier.0.weight"], average["classifier.0.weight"])
    assert_undisturbed(train("fast stopped", *WORDS, "resume=auto", size=2), whole)


def test_what_is_frozen_is_as_it_began(whole: Path, train: Train) -> None:
    """On one rank as on two."""
    filters, more = (
        load_file(latest(run) / "model.safetensors")["features.0.weight"]
        for run in (whole, train("fast alone", *WORDS, "min_steps=2", "lookahead=1"))
    )
    assert torch.equal(filters, more)
    assert torch.equal(filters[0::2], -filters[1::2])
    weights = load_file(latest(whole) / "model.safetensors")
    assert (weights["features.1.weight"] == 1).all() and weights["features.1.bias"].any()
