"""What the ranks send one another: every choice against one rank with the whole batch, or against its paper's formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.training.rank_processes import Ranks
from tests.training.test_steps import assert_same_steps
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.distributed import World, joined

PLAIN: dict[str, Any] = {
    "network": "vgg11",
    "batch": 8,
    "precision": "fp32",
    "threads": 1,
    "model": {"batch_norm": False},
    "data": {"image_size": 16},
    "optimizer": {"learning_rate": 0.01},
}
HEAD = {"model": {"batch_norm": False, "head": "paper"}, "data": {"image_size": 32}}


class SmallVgg(nn.Module):
    """Two convolutions and a head of VGG's layers, small enough for many quick launches."""

    def __init__(self, batch_norm: bool, head: str) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(width) if batch_norm else nn.Identity() for width in (16, 32)]
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), norms[1], nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
        )
        layers = [nn.Linear(128, 64), nn.ReLU(inplace=True), nn.Dropout(0.0)]
        layers += [nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(0.0)]
        self.classifier = nn.Sequential(
            *(layers if head == "paper" else []), nn.Linear(64 if head == "paper" else 128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def configuration(changes: dict[str, Any]) -> Config:
    return msgspec.convert({**PLAIN, **changes}, Config)


def network_of(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return SmallVgg(config.model.batch_norm, config.model.head).to(memory_format=torch.channels_last)


def batch(config: Config, step: int) -> tuple[Tensor, Tensor]:
    """A global batch of noise."""
    generator = torch.Generator().manual_seed(step)
    side = config.data.image_size
    images = torch.randn(config.batch, 3, side, side, generator=generator)
    return images, torch.randint(0, 10, (config.batch,), generator=generator)


def train_rank(changes: dict[str, Any], steps: range, start: Path | None, output: Path) -> int:
    """One rank: go on from what an earlier launch wrote into `start`, take `steps`, write what a checkpoint holds."""
    config = configuration(changes)
    output.mkdir(exist_ok=True)
    with joined() as world:
        world.use_threads(1)
        engine = engines.build(config, network_of(config), world)
        if start is not None:
            engine.load_weights(load_file(start / "0.safetensors"))
            engine.load_state(
                load_file(start / "optimizer.safetensors"), json.loads((start / "values.json").read_text())
            )
        for step in steps:
            take_step(engine, config, world, step)
        engine.synchronise()
        weights, (tensors, values) = engine.weights(), engine.state()
        save_file({name: value.contiguous() for name, value in weights.items()}, output / f"{world.rank}.safetensors")
        if world.is_main:
            save_file({name: value.contiguous() for name, value in tensors.items()}, output / "optimizer.safetensors")
            (output / "values.json").write_text(json.dumps(values))
            (output / "measured.json").write_text(json.dumps(engine.measured))
    return 0


def take_step(engine: engines.Engine, config: Config, world: World, step: int) -> None:
    torch.manual_seed(1000 * step + world.rank)
    mine = [tensor.chunk(world.size)[world.rank].chunk(config.accumulation) for tensor in batch(config, step)]
    for number, (images, labels) in enumerate(zip(*mine), start=1):
        loss, _ = engine.forward(images, labels, last=number == config.accumulation)
        engine.backward(loss)
    engine.step()


Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(runs: Path) -> Trained:
    """Trains: `trained(name, changes, steps=range(4), size=2, start=None)`; the folder with what came of it."""

    def train(
        name: str, changes: dict[str, Any], steps: range = range(4), size: int = 2, start: Path | None = None
    ) -> Path:
        ranks = Ranks(train_rank, (changes, steps, start, runs / name), size, runs / f"{name} output")
        assert ranks.wait() == [0] * size, ranks.stderr
        return runs / name

    return train


def weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{rank}.safetensors")


def start_of(changes: dict[str, Any]) -> dict[str, Tensor]:
    return network_of(configuration(changes)).state_dict()


def assert_same_bits(found: Path, expected: Path) -> None:
    for name in ("0", "1", "optimizer"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the length of `expected`, over all parameters."""
    difference = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    return float((difference / sum(value.double().square().sum() for value in expected.values())).sqrt())


def way(folder: Path, changes: dict[str, Any]) -> dict[str, Tensor]:
    """How far each parameter went."""
    start = start_of(changes)
    return {name: value - start[name] for name, value in weights(folder).items()}


@pytest.fixture(scope="module")
def alone(trained: Trained) -> Path:
    """Four steps of the whole batch on one rank."""
    return trained("alone", {}, size=1)


EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "many buckets": {"bucket_mb": 0.02, "first_bucket_mb": 0.01},
    "one bucket": {"bucket_mb": 1000.0, "first_bucket_mb": None},
    "measured buckets": {"bucket_mb": "auto"},
    "copied gradients": {"gradient_views": False},
    "static graph": {"static_graph": True},
    "powersgd's warm-up": {"compression": "powersgd", "powersgd_warmup_steps": 4},
    "powersgd of full rank": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 10000},
}


@pytest.mark.parametrize("name", EXACT)
def test_takes_the_steps_of_one_rank(name: str, alone: Path, trained: Trained) -> None:
    folder = trained(name, {"communication": EXACT[name]})
    assert_same_steps(weights(folder), weights(alone), start_of({}))


def test_measured_buckets_are_one_choice_of_several_and_on_record(trained: Trained) -> None:
    folder = trained("measured", {"communication": {"bucket_mb": "auto"}}, range(1))
    measured = json.loads((folder / "measured.json").read_text())["bucket_mb"]
    assert len(measured["seconds"]) >= 3
    chosen = "{:g}, first {:g}".format(*measured["chosen"])
    assert measured["seconds"][chosen] == min(measured["seconds"].values())


@pytest.mark.parametrize(("compression", "precision"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_cast_gradients_stay_within_their_rounding(
    compression: str, precision: float, alone: Path, trained: Trained
) -> None:
    folder = trained(compression, {"communication": {"compression": compression}}, range(1))
    exact = trained(f"one step {compression}", {}, range(1))
    found, expected = way(folder, {}), way(exact, {})
    for name in found:
        assert 0 < distance({name: found[name]}, {name: expected[name]}) < 2 * precision


POWERSGD = {"compression": "powersgd", "powersgd_warmup_steps": 1, "powersgd_rank": 2}


def test_powersgd_loses_less_over_time_with_error_feedback(alone: Path, trained: Trained) -> None:
    """With it, the sum of the steps comes near that of whole gradients; without, what is lost stays lost."""
    steps = range(12)
    plain = {"optimizer": {"learning_rate": 1e-4, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}}
    exact = way(trained("whole", plain, steps, size=1), plain)
    errors = []
    for feedback in (True, False):
        changes = {**plain, "communication": {**POWERSGD, "powersgd_error_feedback": feedback}}
        errors.append(distance(way(trained(f"feedback {feedback}", changes, steps), plain), exact))
    assert errors[0] < 0.8 * errors[1]


LOSSY = {
    "powersgd": {"communication": POWERSGD},
    "local SGD": {"communication": {"synchronise_every": 2}},
    "DiLoCo in bf16": {
        "communication": {
            "synchronise_every": 2,
            "outer_learning_rate": 0.7,
            "outer_momentum": 0.9,
            "compression": "bf16",
        }
    },
    "adamw and powersgd": {
        "communication": POWERSGD,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    },
    "lamb": {"optimizer": {"name": "lamb"}},
    "lars": {"optimizer": {"name": "lars"}},
}


@pytest.mark.parametrize("name", LOSSY)
def test_ranks_agree_and_a_restart_ends_with_the_same_bits(name: str, trained: Trained) -> None:
    whole = trained(f"{name} whole", LOSSY[name])
    assert all(torch.equal(value, weights(whole, 1)[key]) for key, value in weights(whole).items())
    half = trained(f"{name} half", LOSSY[name], range(2))
    assert_same_bits(trained(f"{name} resumed", LOSSY[name], range(2, 4), start=half), whole)


def test_state_of_two_ranks_loads_into_one_and_three(trained: Trained) -> None:
    """Errors and inner optimizers of ranks that are no more are shared out."""
    for name in ("powersgd", "local SGD"):
        changes = {**LOSSY[name], "batch": 12}
        half = trained(f"{name} of two", changes, range(2))
        for size in (1, 3):
            trained(f"{name} on {size}", changes, range(2, 4), size=size, start=half)


def outer_reference(rate: float, momentum: float, every: int, steps: int) -> dict[str, Tensor]:
    """DiLoCo's algorithm 1 with torch's SGD as both optimizers: two networks, each on its half of every batch."""
    config = configuration({})
    networks = [network_of(config) for _ in range(2)]
    common = network_of(config)
    outer = torch.optim.SGD(common.parameters(), lr=rate, momentum=momentum, nesterov=momentum > 0)
    inners = []
    for network in networks:
        weights = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
        inners.append(torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True))
    for step in range(steps):
        images, labels = (tensor.chunk(2) for tensor in batch(config, step))
        for rank, (network, inner) in enumerate(zip(networks, inners)):
            inner.zero_grad()
            nn.functional.cross_entropy(network(images[rank]), labels[rank]).backward()
            inner.step()
        if (step + 1) % every == 0:
            for parameter, *own in zip(common.parameters(), *(network.parameters() for network in networks)):
                parameter.grad = parameter.detach() - torch.stack([p.detach() for p in own]).mean(dim=0)
            outer.step()
            for network in networks:
                network.load_state_dict(common.state_dict())
    return common.state_dict()


@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (0.7, 0.9)])
def test_outer_steps_are_the_paper_s(rate: float, momentum: float, trained: Trained) -> None:
    communication = {"synchronise_every": 2, "outer_learning_rate": rate, "outer_momentum": momentum}
    folder = trained(f"outer {momentum}", {"communication": communication})
    assert_same_steps(weights(folder), outer_reference(rate, momentum, 2, 4), start_of({}))


def test_synchronised_batch_norm_is_that_of_the_whole_batch(trained: Trained) -> None:
    changes = {"model": {"batch_norm": True}}
    expected = weights(trained("norm alone", changes, size=1))
    found = weights(trained("norm together", {"model": {"batch_norm": True, "sync_batch_norm": True}}))
    start = start_of(changes)
    before_norm = {"features.0.bias", "features.4.bias"}  # which the norm takes away again
    floating = {name for name in found if found[name].is_floating_point()} - before_norm
    assert_same_steps(*({name: tensors[name] for name in floating} for tensors in (found, expected, start)))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_split_head_takes_the_steps_of_the_whole(accumulation: int, trained: Trained) -> None:
    head = {**HEAD, "accumulation": accumulation}
    expected = trained(f"whole head {accumulation}", head, range(3), size=1)
    split = {**head, "communication": {"split_head": "all"}}
    found = trained(f"split head {accumulation}", split, range(3))
    assert_same_steps(weights(found), weights(expected), start_of(head))
    if accumulation == 1:
        momenta = load_file(expected / "optimizer.safetensors")
        nothing = {name: torch.zeros_like(value) for name, value in momenta.items()}
        assert_same_steps(load_file(found / "optimizer.safetensors"), momenta, nothing)


def test_split_head_goes_on_from_any_world_size_and_back(trained: Trained) -> None:
    split = {**HEAD, "communication": {"split_head": "all"}}
    one = trained("head on one", HEAD, range(1), size=1)
    two = trained("head on two", split, range(1, 2), size=2, start=one)
    again = trained("head on one again", split, range(2, 3), size=1, start=two)
    expected = trained("head undisturbed", HEAD, range(3), size=1)
    assert_same_steps(weights(again), weights(expected), start_of(HEAD))


def test_split_head_and_compression_go_together(trained: Trained) -> None:
    both = {**HEAD, "precision": "bf16", "communication": {"split_head": "all", **POWERSGD}}
    whole = trained("both", both, range(3))
    half = trained("both half", both, range(2))
    assert_same_bits(trained("both resumed", both, range(2, 3), start=half), whole)
