"""The optimizer steps of several ranks, and of several micro-batches, against those of one whole batch and of plain torch."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.support.rank_processes import CPU, Ranks, Train
from tests.support.run_folders import assert_same_steps
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order
from vgg_ddp.distributed.world import joined
from vgg_ddp.model import initialize, vgg
from vgg_ddp.model.convolution import CpuConvolution

STEPS = 3
NO_NORM = "model.batch_norm=false"
THREE_STEPS = f"min_steps={STEPS}"


def final(run: Path, name: str = "model") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / (run / "checkpoints" / "latest").read_text() / f"{name}.safetensors")


def initial_weights(batch_norm: bool, image_size: int = 16) -> nn.Module:
    """With the convolutions of CPU training: after three steps, the rounding of others would look like a mistake."""
    network = vgg("vgg_tiny", batch_norm, "compact", 10, image_size, convolution=CpuConvolution)
    initialize(network, "kaiming", 0)
    return network


@pytest.fixture(scope="module")
def one_rank(train: Train) -> Path:
    """Three steps of the whole batch, without batch normalisation."""
    return train("one", NO_NORM, THREE_STEPS)


def test_the_run_took_three_steps(one_rank: Path) -> None:
    assert [row["step"] for row in metrics(one_rank) if row["scope"] == "steps"] == [1, 2, 3]


def test_two_ranks_under_torchrun_take_the_steps_of_one(one_rank: Path, runs: Path, recipe: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(recipe), f"run.dir={runs / 'two'}", NO_NORM, THREE_STEPS]
    done = subprocess.run(
        [*torchrun, "-m", "vgg_ddp.train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "two" / "environment.json").read_text())["world_size"] == 2
    start = initial_weights(batch_norm=False).state_dict()
    assert_same_steps(final(runs / "two"), final(one_rank), start)
    momenta = final(one_rank, "optimizer")
    assert_same_steps(final(runs / "two", "optimizer"), momenta, {n: torch.zeros_like(m) for n, m in momenta.items()})


@pytest.mark.parametrize(("size", "accumulation"), [(1, 2), (2, 4)])
def test_micro_batches_take_the_steps_of_the_whole_batch(
    size: int, accumulation: int, one_rank: Path, train: Train
) -> None:
    run = train(f"{size} {accumulation}", NO_NORM, THREE_STEPS, f"accumulation={accumulation}", size=size)
    assert_same_steps(final(run), final(one_rank), initial_weights(batch_norm=False).state_dict())
    for row, expected in zip(metrics(run), metrics(one_rank), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["accuracy"] == pytest.approx(expected["accuracy"])


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_with_batch_norm_are_two_halves_with_their_own_statistics(few_digits: Path, train: Train) -> None:
    """Against plain torch in one process: two networks take a half each, their gradients are averaged.

    With all that lies between gradients and update: clipping, Nesterov momentum, weight decay on weights alone. At 32
    pixels and without augmentation the batch is the stored pixels. The running statistics are those of rank 0.
    """
    run = train(
        "norm", THREE_STEPS, "data.image_size=32", "augment.flip=false", "loss.label_smoothing=0.1",
        "optimizer.clip_norm=1", "optimizer.weight_decay=0.1", "optimizer.learning_rate=0.1", size=2,
    )  # fmt: skip
    mean, std = Dataset(few_digits).record.mean, Dataset(few_digits).record.std
    pixels = np.load(few_digits / "train.images.npy").astype(np.float64)
    images = torch.from_numpy((pixels - mean) / std).float().permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.load(few_digits / "train.labels.npy"))

    network = initial_weights(batch_norm=True, image_size=32).to(memory_format=torch.channels_last)
    start = copy.deepcopy(network.state_dict())
    halves = [network, copy.deepcopy(network)]
    for half in halves:
        half.train()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    decays = {
        0.1: [p for p in network.parameters() if p.ndim > 1],
        0.0: [p for p in network.parameters() if p.ndim == 1],
    }
    groups = [{"params": parameters, "weight_decay": decay} for decay, parameters in decays.items()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    order = Order(seed=0, samples=np.arange(len(labels)), batch=16)
    for part, _ in zip(order.slices(epoch=0), range(STEPS)):
        halves[1].load_state_dict(dict(network.named_parameters()), strict=False)
        for half, samples in zip(halves, (part.samples[:8], part.samples[8:])):
            half.zero_grad()
            criterion(half(images[samples]), labels[samples]).backward()
        for parameter, other in zip(network.parameters(), halves[1].parameters()):
            parameter.grad = (parameter.grad + other.grad) / 2
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    found, expected = final(run), network.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name] == STEPS for name in found if name.endswith("num_batches_tracked"))
    floating = {name for name in found if found[name].is_floating_point()}
    trained = {name for name in floating if name not in biases_before_norm(network)}
    # Where two pixels are almost equal, rounding decides which is pooled, which changes a bias's path by a hundredth.
    ways = ({name: tensors[name] for name in trained} for tensors in (found, expected, start))
    assert_same_steps(*ways, apart=0.05)
    for name in floating - trained:  # their gradient is zero but for rounding
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


def biases_before_norm(network: nn.Module) -> set[str]:
    """Biases of convolutions that are followed by a batch norm, which cancels them."""
    return {f"{name}.bias" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def count_reductions(output: Path) -> int:
    """As one of two ranks: take a step of four micro-batches; write how many all-reduces each of them made."""
    config = Config(network="vgg11", batch=16, accumulation=4, precision="fp32", threads=1)
    generator = torch.Generator().manual_seed(0)
    with joined(devices=CPU) as world:
        world.use_threads(config.threads)
        engine = engines.build(config, initial_weights(batch_norm=True), world)
        counts = []
        for number in range(1, config.accumulation + 1):
            images = torch.randn(2, 3, 16, 16, generator=generator)
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                loss, _ = engine.forward(images, torch.tensor([1, 2]), last=number == config.accumulation)
                engine.backward(loss)
            counts.append(sum("all_reduce" in event.name or "allreduce" in event.name for event in profiled.events()))
        engine.step()
        if world.is_main:
            output.write_text(json.dumps(counts))
    return 0


def test_gradients_are_reduced_in_the_last_micro_batch_only(runs: Path) -> None:
    output = runs / "counts.json"
    ranks = Ranks(count_reductions, (output,), 2, runs / "counts output")
    assert ranks.wait() == [0, 0], ranks.stderr
    *others, last = json.loads(output.read_text())
    assert others == [0, 0, 0]
    assert last > 0
