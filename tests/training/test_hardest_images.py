"""`loss.hardest`: which images of a batch are trained on, and that nothing else of a training changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.rank_processes import Launch, Train, step
from tests.support.run_folders import assert_same_bits, metrics, stop, without_seconds
from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.loaders import Batch
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.run.training_answers import read_epochs
from vgg_ddp.training import hardest_images
from vgg_ddp.training.parts import build_network


class FirstPixel(nn.Module):
    """Its logit for class 1 is the red of the first pixel, after batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(1), nn.Dropout(0.9)
        self.sides: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sides.append(images.shape[-1])
        red = self.dropout(self.norm(images[:, 0, 0, :1]))
        return torch.cat([torch.zeros_like(red), red], dim=1)


def inputs(batch: Batch, side: int | None) -> tuple[Tensor, Tensor]:
    images = batch.images.permute(0, 3, 1, 2).float()
    return images if side is None else images[:, :, :side, :side], batch.labels


def chosen(batch: Batch, side: int | None = None, **loss: float) -> tuple[Batch, FirstPixel]:
    network = FirstPixel()
    config = Config(precision="fp32", loss=LossConfig(**loss))  # type: ignore[arg-type]
    return hardest_images.build(config, lambda: network, ALONE).of(batch, inputs, side), network


REDS = [7, 1, 9, 3, 8, 0, 2]  # all of class 0: the larger the value, the larger the loss


def batch_of(piece: Slice | DeviceSlice) -> Batch:
    images = torch.tensor(REDS, dtype=torch.uint8)[:, None, None, None].expand(-1, 32, 32, 3)
    return Batch(images, torch.zeros(len(REDS), dtype=torch.int64), piece)


SAMPLES = np.arange(100, 107)
ON_HOST = Slice(3, 40, SAMPLES)
ON_DEVICE = DeviceSlice(torch.tensor(3), torch.arange(40, 47), torch.from_numpy(SAMPLES))


@pytest.mark.parametrize("piece", [ON_HOST, ON_DEVICE], ids=["on the host", "on the device"])
def test_the_images_with_the_largest_loss_stay_with_their_places_in_the_order(piece: Slice | DeviceSlice) -> None:
    found, network = chosen(batch_of(piece), hardest=0.4)
    assert found.images[:, 0, 0, 0].tolist() == [7, 9, 8]
    assert isinstance(found.slice, DeviceSlice)
    assert found.slice.position.tolist() == [40, 42, 44]
    assert found.slice.samples.tolist() == [100, 102, 104]
    assert int(found.slice.epoch) == 3
    assert len(found) == len(found.labels) == 3
    augmented = torch.from_numpy(ON_HOST.uniform(5, "cutout"))
    assert torch.equal(found.slice.uniform(5, "cutout"), augmented[[0, 2, 4]])  # as when all are trained on
    assert all(module.training for module in network.modules())
    assert network.norm.num_batches_tracked == 0
    assert network.norm.running_mean.tolist() == [0]


def test_a_share_of_one_leaves_a_batch_as_it_is() -> None:
    batch = batch_of(ON_HOST)
    found, network = chosen(batch, hardest=1.0)
    assert found is batch
    assert network.sides == []


@pytest.mark.parametrize(("side", "expected"), [(None, 16), (24, 16), (16, 16), (8, 8)])
def test_images_are_looked_at_no_larger_than_they_are_trained_on(side: int | None, expected: int) -> None:
    _, network = chosen(batch_of(ON_HOST), side, hardest=0.5, hardest_size=16)
    assert network.sides == [expected]


def test_running_statistics_of_another_size_choose_no_images() -> None:
    """With statistics of another size a network is right only by chance."""
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 32, 32, 3), generator=drawn).byte()
    batch = Batch(pixels, torch.arange(8), Slice(0, 0, np.arange(8)))
    config = Config(network="vgg_tiny", precision="fp32", loss=LossConfig(hardest=0.5))
    network = build_network(config, 8, torch.device("cpu"))
    choose = partial(hardest_images.build(config, lambda: network, ALONE).of, batch, inputs, None)
    first = choose().slice.samples
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(len(buffer), generator=drawn) * 1000 + 1)
    assert torch.equal(choose().slice.samples, first)


# 20 of 180 images are held out: an epoch of eight steps.
WORDS = ("model.batch_norm=false", "data.validation=0.1", "optimizer.learning_rate=0.001", "min_steps=8")


@pytest.fixture(scope="module")
def hardest(train: Train) -> Path:
    return train("hardest", *WORDS, "loss.hardest=0.5")


def answered(run: Path) -> int:
    (answers,) = read_epochs(RunDirectory(run), 160)
    return int(np.isfinite(answers).all(axis=0).sum())


def first_loss(run: Path) -> float:
    return next(row["loss"] for row in read_metrics(RunDirectory(run).metrics) if row["split"] == "train")


def test_a_training_answers_the_harder_half_of_each_batch(hardest: Path, train: Train) -> None:
    everything, two = train("all", *WORDS), train("two", *WORDS, "loss.hardest=0.5", "accumulation=2", size=2)
    assert (answered(hardest), answered(two), answered(everything)) == (64, 64, 128)
    assert first_loss(hardest) > first_loss(two) > first_loss(everything)  # each of the two chooses among fewer images


def test_stopped_and_resumed_it_ends_with_the_same_bits(
    hardest: Path, launch: Launch, train: Train, runs: Path
) -> None:
    stop(launch("stopped", *WORDS, "loss.hardest=0.5", pause=step(3)))
    assert_same_bits(train("stopped", *WORDS, "loss.hardest=0.5", "resume=auto"), hardest, "model")


@pytest.mark.parametrize(("every", "after"), [(1, 11), (3, 7)], ids=["together", "local SGD"])
def test_so_do_two_ranks_with_batch_norm(every: int, after: int, launch: Launch, train: Train, runs: Path) -> None:
    """Running statistics, of which a checkpoint has only rank 0's, choose no images: each rank uses its batch's."""
    words = ("loss.hardest=0.5", "model.norm_momentum=0.9", "optimizer.learning_rate=0.05", "augment.flip=false")
    words += ("min_steps=14", f"communication.synchronise_every={every}")
    name = f"normed {every}"
    whole = train(name, *words, size=2)
    stop(launch(f"{name} stopped", *words, size=2, pause=step(after)))
    resumed = train(f"{name} stopped", *words, "resume=auto", size=2)
    assert_same_bits(resumed, whole, "model")
    assert without_seconds(metrics(resumed)) == without_seconds(metrics(whole))
