"""Convolutions that are frozen, or learn more slowly than the head, with every engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.rank_processes import CPU, Launch, Ranks, Train, step
from tests.support.run_folders import assert_undisturbed, latest, stop
from vgg_ddp import engines
from vgg_ddp.config import Config, load
from vgg_ddp.distributed.world import ALONE, World, joined
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG, initialize
from vgg_ddp.optim import optimizers
from vgg_ddp.training.parts import build_network

PLAIN = {"network": "vgg11", "batch": 8, "precision": "fp32", "threads": 1, "data": {"image_size": 16}}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "local SGD": {"communication": {"synchronise_every": 2}},
    "powersgd": {"communication": {"compression": "powersgd", "powersgd_rank": 1}},
    "zero 0": {"engine": "deepspeed", "deepspeed": {"stage": 0}},
    "zero 1": {"engine": "deepspeed", "deepspeed": {"stage": 1}},
    "zero 3": {"engine": "deepspeed", "deepspeed": {"stage": 3}},
}
WITH_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
TRIED = {  # engines by the rate of the convolutions
    0.0: ["ddp", "local SGD", "powersgd", *(["zero 0", "zero 1"] if WITH_DEEPSPEED else [])],
    0.25: ["ddp", *(["zero 1", "zero 3"] if WITH_DEEPSPEED else [])],
}


def configured(rate: float, **changes: Any) -> Config:
    """A configuration with this rate for the convolutions; the file that they are initialised from is not read here."""
    optimizer = {"learning_rate": 0.05, "features_rate": rate, **changes.pop("optimizer", {})}
    settings = {**PLAIN, "model": {"initialize_from": "some.pth"}, "optimizer": optimizer, **changes}
    return msgspec.convert(settings, Config)


def moved(network: VGG) -> None:
    """Set initial weights, and batch-norm statistics other than the default ones."""
    initialize(network, "kaiming", 1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean += 0.1
            norm.running_var *= 2


def take_steps(engine: engines.Engine, world: World, count: int) -> None:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(count):
        optimizers.set_learning_rate(engine.optimizer, 0.05)
        mine = slice(8 // world.size * world.rank, 8 // world.size * (world.rank + 1))
        loss, _ = engine.forward(images[mine], torch.arange(8)[mine], last=True)
        engine.backward(loss)
        engine.step()
    engine.synchronise()


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@pytest.mark.parametrize("recompute", ["none", "stages"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_frozen_convolutions_keep_every_bit_and_get_no_gradient(name: str, recompute: str) -> None:
    config = configured(0, recompute=recompute, optimizer={"name": name, "weight_decay": 0.1})
    network = build_network(config, 10, ALONE.device, moved)
    before = copied(network.state_dict())
    engine = engines.build(config, network, ALONE)
    network.train()  # as after each validation
    take_steps(engine, ALONE, 2)
    assert not network.features(torch.zeros(2, 3, 16, 16)).requires_grad
    for key, tensor in engine.weights().items():
        assert torch.equal(tensor, before[key]) == key.startswith("features."), key
    assert all(parameter.grad is None for parameter in network.features.parameters())
    assert {key.partition("/")[0] for key in engine.state()[0]} == {"classifier.0.weight", "classifier.0.bias"}


@torch.no_grad()
def test_the_head_of_frozen_convolutions_learns_on_what_is_evaluated() -> None:
    """In training and in evaluation mode, a frozen network gives the same outputs."""
    network = build_network(configured(0), 10, ALONE.device, moved)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.train()(images), network.eval()(images))


def engines_on_ranks(output: Path) -> int:
    """As a rank: the weights after steps of each engine, and after saving, loading into a new one, and continuing."""
    with joined(devices=CPU) as world:
        world.use_threads(1)
        for rate, names in TRIED.items():
            for name in names:
                config = configured(rate, **ENGINES[name])
                built = [engines.build(config, build_network(config, 10, world.device, moved), world) for _ in range(2)]
                take_steps(built[0], world, 1)
                weights, (tensors, values) = copied(built[0].weights()), built[0].state()
                built[1].load_weights(weights)
                built[1].load_state(_everywhere(tensors, world), values)
                for number, engine in enumerate(built):
                    take_steps(engine, world, 1)
                    found = copied(engine.weights())
                    if world.is_main:
                        save_file({k: v.contiguous() for k, v in found.items()}, output / f"{name} {rate} {number}")
    return 0


def _everywhere(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Broadcast what rank 0 saves to every rank, as after reading a checkpoint."""
    from safetensors.torch import load as load_bytes
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return load_bytes(world.broadcast(data if world.is_main else b""))


@pytest.fixture(scope="module")
def after_steps(runs: Path) -> dict[tuple[str, float, int], dict[str, Tensor]]:
    output = runs / "engines"
    output.mkdir()
    ranks = Ranks(engines_on_ranks, (output,), 2, runs / "engines output")
    assert ranks.wait() == [0, 0], ranks.stderr
    found = {}
    for path in output.iterdir():
        name, rate, number = path.name.rsplit(" ", 2)
        found[name, float(rate), int(number)] = load_file(path)
    return found


@pytest.mark.parametrize(("rate", "engine"), [(rate, name) for rate, names in TRIED.items() for name in names])
def test_every_engine_freezes_and_slows_the_same_and_goes_on_bit_by_bit(
    rate: float, engine: str, after_steps: dict[tuple[str, float, int], dict[str, Tensor]]
) -> None:
    start = build_network(configured(0), 10, ALONE.device, moved).state_dict()
    found, again = after_steps[engine, rate, 0], after_steps[engine, rate, 1]
    assert [name for name in found if not torch.equal(found[name], again[name])] == []
    frozen = {name for name in found if rate == 0 and name.startswith("features.")}
    assert [name for name in frozen if not torch.equal(found[name], start[name])] == []
    for name in found.keys() - frozen:
        if name.endswith(".weight") and engine.startswith("zero"):
            expected = after_steps["ddp", rate, 0][name]
            assert (found[name] - expected).norm() < 0.01 * (expected - start[name]).norm(), name
    assert not torch.equal(found["classifier.0.weight"], start["classifier.0.weight"])


def test_zero_3_is_refused_by_name(recipe: Path) -> None:
    words = ("model.initialize_from=some.pth", "optimizer.features_rate=0")
    with pytest.raises(UserError, match=r"optimizer\.features_rate=0: ZeRO 3 .* set deepspeed\.stage=2"):
        load(recipe, [*words, "engine=deepspeed", "deepspeed.stage=3"])
    with pytest.raises(UserError, match=r"optimizer\.features_rate=0 .* set model\.initialize_from"):
        load(recipe, words[1:])


def test_a_run_with_frozen_convolutions_goes_on_bit_by_bit_and_stays_frozen(
    launch: Launch, train: Train, runs: Path
) -> None:
    source = train("source", "min_steps=2")
    words = (f"model.initialize_from={source}", "optimizer.features_rate=0", "min_steps=4", "data.validation=0.2")
    words += ("optimizer.name=adam", "optimizer.learning_rate=0.001", "data.train_sizes=[16]")
    whole = train("whole", *words)
    stop(launch("stopped", *words, pause=step(2)))
    ranks = launch("stopped", *words, "optimizer.features_rate=0.1", "resume=auto")
    assert ranks.wait() == [2]
    assert "was made with optimizer.features_rate=0, not above 0; set it so" in ranks.stderr
    assert_undisturbed(train("stopped", *words, "resume=auto"), whole)
    before, after = (load_file(latest(run) / "model.safetensors") for run in (source, whole))
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert kept == [name for name in before if name.startswith("features.")]
