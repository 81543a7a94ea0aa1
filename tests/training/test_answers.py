"""How training images were answered is kept for each image once, whatever the number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rank_processes import Launch, Train, step
from tests.support.run_folders import assert_same_bits, latest, stop
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.world import ALONE, World
from vgg_ddp.errors import Damaged
from vgg_ddp.loaders import Batch
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.training_answers import read_epochs
from vgg_ddp.training.answers import NoAnswers, TrainingAnswers, margin_and_probability

IMAGES = 160


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_margin_and_probability(images: int, classes: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=random) * 5
    labels = torch.randint(classes, (images,), generator=random)
    margin, probability = margin_and_probability(logits, labels)
    for k, label in enumerate(labels.tolist()):
        others = [float(value) for j, value in enumerate(logits[k]) if j != label]
        assert float(margin[k]) == pytest.approx(float(logits[k, label]) - max(others), abs=1e-5)
        assert float(probability[k]) == pytest.approx(float(logits[k].softmax(0)[label]), rel=1e-5)


def epochs(run: Path) -> list[np.ndarray]:
    return list(read_epochs(RunDirectory(run), IMAGES))


# Without batch norm, whose statistics depend on the ranks; 20 images are held out; one epoch of 8 steps, then 4 more.
WORDS = ("model.batch_norm=false", "data.validation=0.1", "min_steps=12", "optimizer.learning_rate=0.001")


@pytest.fixture(scope="module")
def one(train: Train) -> Path:
    return train("one", *WORDS)


def test_each_image_of_the_order_has_its_answer(one: Path, few_digits: Path) -> None:
    trained, _ = held_out(Dataset(few_digits), DataConfig(validation=0.1), 0)
    for epoch, (answers, images) in enumerate(zip(epochs(one), (128, 64), strict=True)):
        known = np.flatnonzero(np.isfinite(answers).all(axis=0))
        assert known.tolist() == sorted(Order(0, trained, 16).epoch(epoch)[:images].tolist())
        assert ((answers[1, known] >= 0) & (answers[1, known] <= 1)).all()


def test_two_ranks_and_micro_batches_have_the_same_answers(one: Path, train: Train) -> None:
    two = train("two", *WORDS, "accumulation=2", size=2)
    for found, expected in zip(epochs(two), epochs(one), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_a_run_that_goes_on_with_more_ranks_keeps_what_it_has(
    one: Path, launch: Launch, train: Train, runs: Path
) -> None:
    stop(launch("more", *WORDS, pause=step(3)))
    assert (latest(runs / "more") / "answers.safetensors").is_file()
    run = train("more", *WORDS, "resume=auto", size=2)
    for found, expected in zip(epochs(run), epochs(one), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_off_nothing_is_kept_and_the_same_is_learned(one: Path, train: Train) -> None:
    run = train("off", *WORDS, "log.answers=false")
    assert not (run / "answers").exists()
    assert_same_bits(run, one, "model")


def test_switched_off_later_what_was_kept_of_epochs_that_are_done_again_goes(tmp_path: Path) -> None:
    world, run = World(0, 1, 0, 1, torch.device("cpu")), RunDirectory(tmp_path)
    order = Order(0, np.arange(8), 4)
    kept = TrainingAnswers(order, 8, run, world)
    for epoch in range(3):
        kept.end_epoch(State(step=2 * epoch + 2, epoch=epoch, step_in_epoch=2))
    assert len(list(run.answers.iterdir())) == 3
    NoAnswers(order, 8, run, world).load(None, State(step=2, epoch=1))
    assert [path.name for path in sorted(run.answers.iterdir())] == ["epoch-00001.safetensors"]


def test_a_damaged_file_is_named(one: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.answers.mkdir()
    data = (one / "answers" / "epoch-00001.safetensors").read_bytes()
    (run.answers / "epoch-00001.safetensors").write_bytes(data[:-1])
    with pytest.raises(Damaged, match=r"epoch-00001\.safetensors is damaged"):
        list(read_epochs(run, IMAGES))
    (run.answers / "epoch-00001.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match="for 161 images"):
        list(read_epochs(run, IMAGES + 1))


def test_the_step_and_the_images_of_which_the_answers_are_first_not_finite_are_named(tmp_path: Path) -> None:
    order = Order(0, np.arange(100, 120), 4)
    answers = TrainingAnswers(order, 120, RunDirectory(tmp_path), ALONE)
    state = State(step=23, epoch=4, step_in_epoch=3)
    for piece in list(order.slices(4))[:3]:
        logits = torch.zeros(4, 3)
        if piece.start:
            logits[2] = torch.nan
        answers.add(logits, Batch(torch.empty(4, 1, 1, 3), torch.zeros(4, dtype=torch.int64), piece))
    assert answers.first_not_finite(state) == f" (first in step 22, to training images {order.epoch(4)[6]})"
    first = Batch(torch.empty(4, 1, 1, 3), torch.zeros(4, dtype=torch.int64), next(order.slices(4)))
    answers.add(torch.full((4, 3), torch.inf), first)
    assert answers.first_not_finite(state).startswith(
        " (first in step 21, to every image: by the weights that step 20 left"
    )


def test_of_a_share_of_the_images_every_one_that_was_answered_is_every_image(tmp_path: Path) -> None:
    """When only the hardest half of each batch is trained on."""
    order = Order(0, np.arange(20), 4)
    answers = TrainingAnswers(order, 20, RunDirectory(tmp_path), ALONE)
    batch = Batch(torch.empty(4, 1, 1, 3), torch.zeros(4, dtype=torch.int64), next(order.slices(0)))
    answers.add(torch.full((2, 3), torch.nan), batch.at(torch.tensor([1, 3])))
    assert "to every image: by the weights" in answers.first_not_finite(State(step=1, step_in_epoch=1))


def test_a_training_that_diverges_says_in_which_step(launch: Launch) -> None:
    ranks = launch("diverging", *WORDS, "optimizer.learning_rate=1e20", "log.every_steps=8", size=2)
    assert ranks.wait() == [2, 2]
    (line,) = [line for line in ranks.stderr.splitlines() if "not finite" in line]
    assert "the loss of steps 1 to 8 is not finite (first in step" in line and "left, or by batch norm)" in line
