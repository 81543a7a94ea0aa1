"""The step as one program: it reads no values on the host, and continues exactly as the step itself does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from vgg_ddp.augment.appearance import Appearance
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Slice
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch
from vgg_ddp.loaders.resident import ResidentLoader
from vgg_ddp.model.network import vgg
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim import optimizers
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.train import take_step
from vgg_ddp.training import cuda_graph
from vgg_ddp.training.job import Job, build_job
from vgg_ddp.training.recorder import Recorder

AUGMENT = {"crop_padding": 2, "flip": "alternating", "brightness": 0.3, "hue": 0.1, "colour_shift": 0.1, "cutout": 4}
AUGMENT["strong_epochs"] = [0, 2]


def config(**keys: Any) -> Config:
    settings = {"network": "vgg_tiny", "batch": 8, "accumulation": 2, "precision": "fp32", "augment": AUGMENT}
    data = {"image_size": 16, "resize": None, "validation": 0}
    return msgspec.convert({**settings, "data": data, "threads": 1, **keys}, Config)


@dataclasses.dataclass
class Training:
    """A training whose step is a function of tensors."""

    job: Job
    recorder: Recorder

    def step(self, epoch: Tensor, position: Tensor, samples: Tensor) -> Tensor:
        """The sums of the recorder after one step."""
        nothing = torch.empty(0, dtype=torch.int64)
        piece = DeviceSlice(epoch, position, samples)
        take_step(self.job, self.recorder, Batch(nothing.to(torch.uint8), nothing, piece), side=None)
        return self.recorder._sums.clone()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.job.engine.weights().items()}


def training(dataset: Dataset, folder: Path, **keys: Any) -> Training:
    job = build_job(config(**keys), dataset, RunDirectory(str(folder)), ALONE)
    geometry = training_geometry(job.config.data, job.config.augment, job.config.seed)
    loader = ResidentLoader(dataset.split("train"), geometry, job.config.data, ALONE)
    loader.leave_to_step()
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, train_loader=loader))
    optimizers.prepare_for_recording(job.engine.optimizer, ALONE.device)
    progress = TrainingProgress(1, 0, shown=False)
    return Training(job, Recorder(State(identity={}), ALONE, 8, 20, 20, None, progress))


def inputs(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Epoch, positions and samples of a step."""
    generator = torch.Generator().manual_seed(number)
    samples = torch.randint(0, 160, (8,), generator=generator)
    return torch.tensor(number % 3), torch.arange(8) + 8 * number, samples


@pytest.mark.seconds
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"optimizer": {"name": "adamw"}},
        {"optimizer": {"name": "lars", "clip_norm": 1.0}},
        {"optimizer": {"name": "muon"}, "model": {"whiten": True, "activation": "gelu", "pool_before_norm": True}},
    ],
    ids=["sgd", "adamw", "lars, clipped", "muon"],
)
def test_a_recorded_step_goes_on_as_the_step_itself(keys: dict[str, Any], few_digits: Path, tmp_path: Path) -> None:
    """The program recorded in the second step gives the same bits in later ones: no value of that step is baked in.

    While it is recorded, asking for a value on the host is an error.
    """
    dataset = Dataset(few_digits)
    plain, recorded = (training(dataset, tmp_path / name, **keys) for name in ("plain", "recorded"))
    program = None
    for number in range(4):
        for one in (plain, recorded):
            optimizers.set_learning_rate(one.job.engine.optimizer, 0.01 * (number + 1))
        expected = plain.step(*inputs(number))
        if number == 0:  # this creates the optimizer's state
            found = recorded.step(*inputs(number))
        elif program is None:
            program = make_fx(lambda epoch, position, samples: recorded.step(epoch, position, samples))(*inputs(number))
            found = recorded.recorder._sums
        else:
            with torch.no_grad():  # the program has its backward pass in it
                found = program(*inputs(number))
        assert torch.equal(found, expected)
    ours, theirs = recorded.weights(), plain.weights()
    assert [name for name in ours if "num_batches" not in name and not torch.equal(ours[name], theirs[name])] == []
    assert program is not None
    names = " ".join(str(node.target) for node in program.graph.nodes)
    assert "local_scalar_dense" not in names and "nonzero" not in names
    assert "lift_fresh" not in names  # a value on the host, which a CUDA graph may not copy


def test_nothing_before_the_loss_leaves_the_gpu(few_digits: Path) -> None:
    """With fake tensors, which have a device but no values: mixing devices or asking for a value is an error."""
    dataset, settings = Dataset(few_digits), config()
    cuda = torch.device("cuda", 0)
    appearance = Appearance(settings.augment, 0, 900.0 * np.eye(3), np.ones(3), 10, cuda)
    geometry = training_geometry(settings.data, settings.augment, 0)
    with FakeTensorMode(allow_non_fake_inputs=False):
        world = dataclasses.replace(ALONE, device=cuda)
        loader = ResidentLoader(dataset.split("train"), geometry, settings.data, world)
        loader.leave_to_step()
        piece = DeviceSlice(*(value.to(cuda) for value in inputs(0)))
        empty = torch.empty(0, dtype=torch.int64, device=cuda)
        batch = loader.finish(Batch(empty.to(torch.uint8), empty, piece))
        with cuda:
            network = vgg("A", True, "compact", 10, 16)
        preprocess = Preprocess([128.0] * 3, [64.0] * 3, channels_last=True).to(cuda)
        pixels, labels = appearance(batch.images, batch.labels, batch.slice)
        logits = network(preprocess.normalise(pixels))
        loss = torch.nn.functional.cross_entropy(logits, labels)
    assert (loss.device.type, tuple(logits.shape)) == ("cuda", (8, 10))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"optimizer": {"name": "lamb"}}, "optimizer.name=lamb"),
        ({"augment": {"mixup": 0.2}}, "augment.mixup"),
        ({}, "needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_recorded_is_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        cuda_graph.check(msgspec.structs.replace(config(**keys), compile="graph"), ALONE)


def test_the_draws_of_augmentation_are_the_host_s(few_digits: Path) -> None:
    """The same pixels, from parameters that were computed from the same bits."""
    appearance = Appearance(msgspec.convert(AUGMENT, AugmentConfig), 3, 900.0 * np.eye(3), np.ones(3), classes=10)
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    epoch, position, samples = inputs(2)
    ours, _ = appearance(images, samples, DeviceSlice(epoch, position, samples))
    theirs, _ = appearance(images, samples, Slice(int(epoch), int(position[0]), samples.numpy()))
    assert torch.equal(ours, theirs)
