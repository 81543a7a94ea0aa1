"""A training that ends or stops while its images are shrunk, or soon after: it answers at the evaluated size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import vgg_ddp
from tests.support.rank_processes import Train, apart, program
from tests.support.run_folders import latest
from vgg_ddp.config import Config, load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.settling import check_train_sizes
from vgg_ddp.data.validation import held_out
from vgg_ddp.errors import UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.training.shrunk_images import _are_of_shrunk_images, share_of_shrunk_images

WORDS = ("data.image_size=32", "data.train_sizes=[16,16]", "data.validation=0.25", "min_steps=14", "batch=16")


@pytest.mark.parametrize("words", [(), ("ema=0.5",), ("data.train_sizes=[16]",)], ids=["", "averaged", "grown"])
def test_what_answers_is_the_network_that_was_validated(words: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    """With statistics measured anew; those in the checkpoint, for continuing, are at least partly of 16 pixels."""
    run = train(f"shrunk {words}", *WORDS, *words)
    network, config = vgg_ddp.load_network(run), load(run / "config.yaml")
    stored = "ema.safetensors" if config.ema else "model.safetensors"
    kept = load_file(latest(run) / stored)
    measured = network.network.state_dict()
    assert not any(torch.allclose(measured[name], kept[name]) for name in kept if name.endswith("running_mean"))
    dataset = Dataset(config.data.source)
    logged = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "validation"][-1]
    split = dataset.split("train")
    samples = held_out(dataset, config.data, config.seed)[1].samples
    pixels = torch.from_numpy(np.stack([split.decode(int(k)) for k in samples]))
    with torch.no_grad():
        loss = cross_entropy(network(pixels), torch.from_numpy(split.labels[samples]))
        assert loss.item() == pytest.approx(logged["loss"], rel=1e-4)
        with np.load(run / "evaluation/predictions.npz") as answers:
            test = dataset.split("test")
            pixels = torch.from_numpy(np.stack([test.decode(int(k)) for k in answers["sample_index"]]))
            found = network(pixels).softmax(1).numpy()
            np.testing.assert_allclose(found, answers["probabilities"], atol=1e-4)
            pictures = tmp_path / "pictures"
            pictures.mkdir()
            Image.fromarray(test.decode(0)).save(pictures / "0.png")
    done = program(
        "vgg_ddp", "evaluate", str(run), "--images", str(pictures), "--out", str(tmp_path / "own"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((tmp_path / "own/predictions.json").read_text())["images"]
    of_classes = dict(zip(dataset.classes, found[0]))
    assert answer["probabilities"] == pytest.approx(of_classes, abs=1e-3)


def test_sizes_that_would_enlarge_images_are_refused() -> None:
    check_train_sizes(DataConfig(image_size=24, train_sizes=[16, 24]))
    with pytest.raises(UserError, match=r"data\.train_sizes \(24\) would enlarge images of data\.image_size=16"):
        check_train_sizes(DataConfig(image_size=16, train_sizes=[16, 24]))


def test_each_epoch_is_trained_at_its_size(recipe: Path, runs: Path) -> None:
    """40 of 160 images are held out: seven steps an epoch."""
    words = ("data.train_sizes=[16,24]", "data.validation=0.25", "min_steps=18", "accumulation=2")
    sides = apart(
        _sides_trained_at, [str(recipe), f"run.dir={runs / 'sides'}", "data.image_size=32", "batch=16", *words]
    )
    assert sides == 14 * [16] + 14 * [24] + 8 * [32]


def _sides_trained_at(arguments: list[str]) -> list[int]:
    """The image side in every forward pass with gradients, for a training in this process."""
    from vgg_ddp import train
    from vgg_ddp.model import VGG

    sides, forward = [], VGG.forward

    def noted(network: VGG, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            sides.append(images.shape[-1])
        return forward(network, images)

    VGG.forward = noted  # type: ignore[method-assign]
    assert train.main(arguments) == 0
    return sides


@pytest.mark.parametrize(
    ("keys", "steps", "expected"),
    [
        ({}, 0, 1),
        ({}, 2, 0.81),
        ({"accumulation": 2}, 2, 0.9**4),
        ({"ema": 0.5}, 2, 0.25 + 0.25 * 0.9 + 0.5 * 0.81),
        ({"ema": 0.5, "lookahead": 2}, 3, 0.5 + 0.5 * 0.81),
        ({"ema": 0.5, "lookahead": 2}, 4, (0.5 + 0.5 * 0.81) ** 2),
        ({"ema": 0.999}, 49, 0.999**49 + 0.001 * sum(0.999 ** (49 - k) * 0.9**k for k in range(1, 50))),
    ],
)
def test_the_share_of_shrunk_images(keys: dict[str, Any], steps: int, expected: float) -> None:
    assert share_of_shrunk_images(Config(**keys), steps) == pytest.approx(expected)


def test_soon_it_is_negligible() -> None:
    assert share_of_shrunk_images(Config(), 10**6) < 0.01


@pytest.mark.parametrize(
    ("shrunk", "full", "keys", "expected"),
    [
        (0, 5, {}, False),  # never
        (5, 0, {}, True),
        (5, 2, {}, True),
        (5, 200, {}, False),  # long ago
        (5, 0, {"data": {"train_sizes": []}}, True),  # as a continued training may have it
        (5, 0, {"model": {"batch_norm": False}}, False),
        (5, 0, {"optimizer": {"features_rate": 0}, "model": {"initialize_from": "run"}}, False),
    ],
)
def test_what_was_trained_says_of_which_images_the_statistics_are(
    shrunk: int, full: int, keys: dict[str, Any], expected: bool
) -> None:
    config = msgspec.convert({"data": {"train_sizes": [16, 16]}, **keys}, Config)
    state = State(full_size_steps=0)
    for of_shrunk in [True] * shrunk + [False] * full:
        state.step_taken(of_shrunk)
    assert (state.step, state.step_in_epoch) == (shrunk + full, shrunk + full)
    assert _are_of_shrunk_images(config, state) == expected


@pytest.mark.parametrize(("epoch", "in_epoch", "expected"), [(1, 3, True), (2, 0, True), (2, 1, False), (3, 0, False)])
def test_of_a_checkpoint_that_does_not_say_the_last_epoch_counts(epoch: int, in_epoch: int, expected: bool) -> None:
    state = State(step=9, epoch=epoch, step_in_epoch=in_epoch)
    state.step_taken(shrunk=False)
    assert state.full_size_steps is None
    state = State(step=9, epoch=epoch, step_in_epoch=in_epoch)
    assert _are_of_shrunk_images(Config(data=DataConfig(train_sizes=[16, 16])), state) == expected


def test_a_training_continued_with_other_sizes_knows_those_of_its_past(train: Train) -> None:
    """Its first epoch used 16 pixels, which still dominate its statistics when it ends."""
    words = (*WORDS[:1], *WORDS[2:])
    first = train("with small images", *words, "data.train_sizes=[16,16]", "min_steps=7")
    run = train("with small images", *words, "data.train_sizes=[]", "min_steps=8", "resume=auto")
    assert run == first
    state = checkpoint.state(checkpoint.read(latest(run)))
    assert (state.step, state.full_size_steps) == (8, 1)
    assert _are_of_shrunk_images(load(run / "config.yaml"), state)


def test_a_size_that_is_the_network_s_own_shrinks_nothing(recipe: Path, runs: Path) -> None:
    words = [str(recipe), f"run.dir={runs / 'own size'}", "data.image_size=32", "batch=16", "data.validation=0.25"]
    assert set(apart(_sides_trained_at, [*words, "data.train_sizes=[32]", "min_steps=8"])) == {32}
    state = checkpoint.state(checkpoint.read(latest(runs / "own size")))
    assert state.full_size_steps == state.step == 8
