"""What the ranks send one another: every choice against one rank with the whole batch, or against its paper's formula."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.rank_processes import CPU, Ranks
from tests.support.run_folders import assert_same_steps
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.engines.powersgd import orthonormal

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


@dataclass(frozen=True)
class Task:
    """A training of some steps, which may continue from what another task wrote.

    Attributes:
        hosts: number of hosts over which the ranks are spread evenly.
        forgets: leave out PowerSGD's errors of the other training.
    """

    name: str
    changes: dict[str, Any]
    steps: range = range(4)
    start: str | None = None
    hosts: int = 1
    forgets: bool = False


def train_rank(tasks: list[Task], folder: Path) -> int:
    """One rank: train one task after another, and write what checkpoints hold."""
    with joined(devices=CPU) as world:
        world.use_threads(1)
        for task in tasks:
            local = world.size // task.hosts
            train_task(task, replace(world, local_rank=world.rank % local, local_size=local), folder)
    return 0


def train_task(task: Task, world: World, folder: Path) -> None:
    config = configuration(task.changes)
    engine = engines.build(config, network_of(config), world)
    if task.start is not None:
        start = folder / task.start
        engine.load_weights(load_file(start / "0.safetensors"))
        tensors = load_file(start / "optimizer.safetensors")
        kept = {key: value for key, value in tensors.items() if not (task.forgets and "powersgd_error" in key)}
        assert (
            not task.forgets or len(kept) < len(tensors) or start.name == "no feedback 0"
        )  # the warm-up has no errors
        engine.load_state(kept, json.loads((start / "values.json").read_text()))
    for step in task.steps:
        take_step(engine, config, world, step)
    engine.synchronise()
    output = folder / task.name
    output.mkdir(exist_ok=True)
    weights, (tensors, values) = engine.weights(), engine.state()
    whole = engine.whole_network().state_dict()
    assert all(torch.equal(whole[name], value) for name, value in weights.items())
    save_file({name: value.contiguous() for name, value in weights.items()}, output / f"{world.rank}.safetensors")
    if world.is_main:
        save_file({name: value.contiguous() for name, value in tensors.items()}, output / "optimizer.safetensors")
        (output / "values.json").write_text(json.dumps(values))
        (output / "measured.json").write_text(json.dumps(engine.measured))
    world.barrier()


def take_step(engine: engines.Engine, config: Config, world: World, step: int) -> None:
    torch.manual_seed(1000 * step + world.rank)
    mine = [tensor.chunk(world.size)[world.rank].chunk(config.accumulation) for tensor in batch(config, step)]
    for number, (images, labels) in enumerate(zip(*mine), start=1):
        loss, _ = engine.forward(images, labels, last=number == config.accumulation)
        engine.backward(loss)
    engine.step()


POWERSGD = {"compression": "powersgd", "powersgd_warmup_steps": 1, "powersgd_rank": 2}
DILOCO = {"synchronise_every": 2, "outer_learning_rate": 0.7, "outer_momentum": 0.9}
SPLIT = {"split_head": "all"}
EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "many buckets": {"bucket_mb": 0.02},
    "one bucket": {"bucket_mb": 1000.0},
    "measured buckets": {"bucket_mb": "auto"},
    "powersgd's warm-up": {"compression": "powersgd", "powersgd_warmup_steps": 4},
}
CASTS = {"bf16": 2**-8, "fp16": 2**-11}  # with their rounding errors
STRAIGHT = {"optimizer": {"learning_rate": 1e-4, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}}
FEEDBACK = {**STRAIGHT, "communication": POWERSGD}
FAR = {"optimizer": {**STRAIGHT["optimizer"], "learning_rate": 100.0}}  # a step so large that only the gradient counts
SAM = {"learning_rate": 0.01, "sharpness_radius": 0.5}
SHARP: dict[str, dict[str, Any]] = {
    "sharp": {"optimizer": SAM},
    "sharp in micro-batches": {"optimizer": SAM, "accumulation": 2},
}
RESTARTED: dict[str, dict[str, Any]] = {
    "powersgd": {"communication": POWERSGD},
    "local SGD": {"communication": {"synchronise_every": 2}},
    "DiLoCo in bf16": {"communication": {**DILOCO, "compression": "bf16"}},
    "adamw and powersgd": {"communication": POWERSGD, "optimizer": {"name": "adamw", "learning_rate": 1e-3}},
    "lamb": {"optimizer": {"name": "lamb"}},
    "lars": {"optimizer": {"name": "lars"}},
    "local SGD with SAM": {"communication": {"synchronise_every": 2}, "optimizer": SAM},
    "split head and powersgd": {**HEAD, "precision": "bf16", "communication": {**SPLIT, **POWERSGD}},
}
OUTER = {"local": {"synchronise_every": 2}, "DiLoCo": DILOCO}
NORM = {"model": {"batch_norm": True}}
TWELVE = {"batch": 12}

ON_ONE = [
    Task("alone", {}),
    Task("norm alone", NORM),
    *(Task(f"{name} alone", changes) for name, changes in SHARP.items()),
    Task("sharp norm once", {**NORM, "optimizer": SAM}, range(1)),
    Task("norm once", NORM, range(1)),
    Task("head alone", HEAD, range(3)),
    Task("head alone first", HEAD, range(1)),
]
ON_TWO = [
    *(Task(name, {"communication": keys}) for name, keys in EXACT.items()),
    *(Task(f"{name} once", {"communication": {"compression": name}}, range(1)) for name in CASTS),
    Task("once", {}, range(1)),
    Task("straight", STRAIGHT, range(12)),
    Task("far", FAR, range(1)),
    Task("far at low rank", {**FAR, "communication": {**POWERSGD, "powersgd_warmup_steps": 0}}, range(1)),
    Task("feedback", FEEDBACK, range(12)),
    Task("no feedback 0", FEEDBACK, range(1)),
    *(Task(f"no feedback {n}", FEEDBACK, range(n, n + 1), f"no feedback {n - 1}", forgets=True) for n in range(1, 12)),
    *(Task(f"{name} whole", changes) for name, changes in RESTARTED.items()),
    *(Task(f"{name} half", changes, range(2)) for name, changes in RESTARTED.items()),
    *(Task(f"{name} resumed", changes, range(2, 4), f"{name} half") for name, changes in RESTARTED.items()),
    Task("plain after local SGD", {}, range(2, 4), "local SGD half"),
    *(Task(f"{name} of two", {**RESTARTED[name], **TWELVE}, range(2)) for name in ("powersgd", "local SGD")),
    *(Task(f"outer {name}", {"communication": keys}) for name, keys in OUTER.items()),
    *(Task(name, changes) for name, changes in SHARP.items()),
    Task("norm together", {"model": {"batch_norm": True, "sync_batch_norm": True}}),
    Task("head split", {**HEAD, "communication": SPLIT}, range(3)),
    Task("head split in parts", {**HEAD, "communication": SPLIT, "accumulation": 2}, range(3)),
    Task("head split later", {**HEAD, "communication": SPLIT}, range(1, 2), "head alone first"),
]
ON_OTHERS = {
    1: [
        Task("head alone later", HEAD, range(2, 3), "head split later"),
        *(Task(f"{n} on 1", {**RESTARTED[n], **TWELVE}, range(2, 4), f"{n} of two") for n in ("powersgd", "local SGD")),
    ],
    3: [
        *(Task(f"{n} on 3", {**RESTARTED[n], **TWELVE}, range(2, 4), f"{n} of two") for n in ("powersgd", "local SGD")),
    ],
    4: [Task("head split on each of two hosts", {**HEAD, "communication": {"split_head": "host"}}, range(3), hosts=2)],
}


@pytest.fixture(scope="module")
def trained(runs: Path) -> Path:
    """The folder in which every task has left a folder of its name."""
    for size, tasks in [(1, ON_ONE), (2, ON_TWO), *ON_OTHERS.items()]:
        ranks = Ranks(train_rank, (tasks, runs), size, runs / f"output {size}")
        assert ranks.wait() == [0] * size, ranks.stderr
    return runs


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
    """The distance over all parameters, relative to the norm of `expected`."""
    difference = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    return float((difference / sum(value.double().square().sum() for value in expected.values())).sqrt())


def way(folder: Path, changes: dict[str, Any]) -> dict[str, Tensor]:
    """The total change of each parameter."""
    start = start_of(changes)
    return {name: value - start[name] for name, value in weights(folder).items()}


@pytest.mark.parametrize("name", EXACT)
def test_takes_the_steps_of_one_rank(name: str, trained: Path) -> None:
    assert_same_steps(weights(trained / name), weights(trained / "alone"), start_of({}))


def test_measured_buckets_are_the_quickest_of_several_and_on_record(trained: Path) -> None:
    measured = json.loads((trained / "measured buckets" / "measured.json").read_text())["bucket_mb"]
    assert len(measured["seconds"]) >= 3
    chosen = "{:g}, first {:g}".format(*measured["chosen"])
    assert measured["seconds"][chosen] == min(measured["seconds"].values())


@pytest.mark.parametrize("name", CASTS)
def test_cast_gradients_stay_within_their_rounding(name: str, trained: Path) -> None:
    found, expected = way(trained / f"{name} once", {}), way(trained / "once", {})
    for key in found:
        assert 0 < distance({key: found[key]}, {key: expected[key]}) < 2 * CASTS[name]


def test_powersgd_sends_low_rank_and_remembers_the_rest(trained: Path) -> None:
    """Vogels et al., algorithm 2: what is sent and the mean of the errors are the mean gradient."""
    sent, expected = (way(trained / name, FAR) for name in ("far at low rank", "far"))
    errors = load_file(trained / "far at low rank" / "optimizer.safetensors")
    for name in ("features.0.weight", "features.4.weight"):
        change = sent[name].permute(0, 2, 3, 1).flatten(1).double()
        values = torch.linalg.svdvals(change)
        assert values[2] < 1e-4 * values[0] < 0.1 * values[1]
        left = -100 * torch.stack([errors[f"{name}/powersgd_error@{rank}"] for rank in (0, 1)]).mean(dim=0)
        torch.testing.assert_close(sent[name] + left, expected[name], rtol=1e-3, atol=1e-5)


def test_factors_orthonormalised_together_are_those_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(2, rows, generator=generator) for rows in (64, 512, 64, 128, 512, 512)]
    for factor, found in zip(factors, orthonormal(factors), strict=True):
        torch.testing.assert_close(found, torch.linalg.qr(factor.t()).Q.t(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found @ found.t(), torch.eye(2), rtol=0, atol=1e-6)
        torch.testing.assert_close(factor @ found.t() @ found, factor, rtol=1e-4, atol=1e-5)


def test_powersgd_loses_less_over_time_with_error_feedback(trained: Path) -> None:
    exact = way(trained / "straight", STRAIGHT)
    errors = [distance(way(trained / name, STRAIGHT), exact) for name in ("feedback", "no feedback 11")]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", RESTARTED)
def test_ranks_agree_and_a_restart_ends_with_the_same_bits(name: str, trained: Path) -> None:
    whole = trained / f"{name} whole"
    assert all(torch.equal(value, weights(whole, 1)[key]) for key, value in weights(whole).items())
    assert_same_bits(trained / f"{name} resumed", whole)


def test_after_local_sgd_every_rank_goes_on_with_the_mean_of_the_optimizers(trained: Path) -> None:
    """By then each rank has its own momentum, with which its weights would drift from the others'."""
    folder = trained / "plain after local SGD"
    assert [key for key, value in weights(folder).items() if not torch.equal(value, weights(folder, 1)[key])] == []


@pytest.mark.parametrize("name", ["powersgd", "local SGD"])
def test_state_of_two_ranks_is_shared_out_among_one_and_three(name: str, trained: Path) -> None:
    """They take nearly the same path, each rank with state of its own."""
    alone, three = (way(trained / f"{name} on {size}", {}) for size in (1, 3))
    assert 0 < distance(three, alone) < 0.5
    owners = {key.partition("@")[2] for key in load_file(trained / f"{name} on 3" / "optimizer.safetensors")}
    assert owners - {""} == {"0", "1", "2"}


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


def sharp_reference(steps: int) -> dict[str, Tensor]:
    """SAM's algorithm 1 with torch's SGD on the whole batch."""
    config = configuration({})
    network = network_of(config)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    for step in range(steps):
        images, labels = batch(config, step)
        loss = nn.functional.cross_entropy(network(images), labels)
        gradient = torch.autograd.grad(loss, [*network.parameters()])
        norm = torch.cat([part.flatten() for part in gradient]).norm()
        moved = {name: p + 0.5 * g / norm for (name, p), g in zip(network.named_parameters(), gradient)}
        loss = nn.functional.cross_entropy(torch.func.functional_call(network, moved, (images,)), labels)
        for parameter, part in zip(network.parameters(), torch.autograd.grad(loss, [*moved.values()])):
            parameter.grad = part
        optimizer.step()
    return network.state_dict()


@pytest.mark.parametrize("name", [*SHARP, *(f"{name} alone" for name in SHARP)])
def test_sharpness_aware_steps_are_the_paper_s_over_ranks_and_micro_batches(name: str, trained: Path) -> None:
    reference = sharp_reference(4)
    assert_same_steps(weights(trained / name), reference, start_of({}))
    assert distance(weights(trained / "alone"), reference) > 0.1 * distance(start_of({}), reference)


def test_the_second_pass_of_a_sharpness_aware_step_leaves_batch_statistics_alone(trained: Path) -> None:
    found, expected = weights(trained / "sharp norm once"), weights(trained / "norm once")
    buffers = {name for name in found if "running" in name or "tracked" in name}
    assert len(buffers) == 6
    assert [name for name in found if not torch.equal(found[name], expected[name])] == [
        name for name in found if name not in buffers
    ]


@pytest.mark.parametrize(("name", "rate", "momentum"), [("local", 1.0, 0.0), ("DiLoCo", 0.7, 0.9)])
def test_outer_steps_are_the_paper_s(name: str, rate: float, momentum: float, trained: Path) -> None:
    assert_same_steps(weights(trained / f"outer {name}"), outer_reference(rate, momentum, 2, 4), start_of({}))


def test_synchronised_batch_norm_is_that_of_the_whole_batch(trained: Path) -> None:
    found, expected, start = weights(trained / "norm together"), weights(trained / "norm alone"), start_of(NORM)
    before_norm = {"features.0.bias", "features.4.bias"}  # cancelled by the norm
    floating = {name for name in found if found[name].is_floating_point()} - before_norm
    assert any("running_var" in name for name in floating)
    assert_same_steps(*({name: tensors[name] for name in floating} for tensors in (found, expected, start)))


@pytest.mark.parametrize("name", ["head split", "head split in parts", "head split on each of two hosts"])
def test_split_head_takes_the_steps_of_the_whole(name: str, trained: Path) -> None:
    assert_same_steps(weights(trained / name), weights(trained / "head alone"), start_of(HEAD))
    momenta, found = (load_file(trained / n / "optimizer.safetensors") for n in ("head alone", name))
    assert_same_steps(found, momenta, {key: torch.zeros_like(value) for key, value in momenta.items()})


def test_split_head_goes_on_from_one_rank_and_back(trained: Path) -> None:
    assert_same_steps(weights(trained / "head alone later"), weights(trained / "head alone"), start_of(HEAD))
