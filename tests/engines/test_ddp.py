"""The plain engine's state: what it saves is what it goes on from."""

from __future__ import annotations

import msgspec
import pytest
import torch

from tests.support.rank_processes import CPU
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.distributed.world import joined
from vgg_ddp.engines import Engine
from vgg_ddp.model import initialize, vgg

CONFIG = Config(
    network="vgg11", batch=4, precision="fp16", threads=1, optimizer=OptimizerConfig(learning_rate=0.01), device="cpu"
)


def take_step(engine: Engine, factor: float) -> None:
    """Take a step with gradients multiplied by `factor`."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss, _ = engine.forward(images, torch.arange(4), last=True)
    engine.backward(loss * factor)
    engine.step()


@pytest.mark.seconds
def test_fp16_goes_on_with_its_loss_scale() -> None:
    """After two steps that overflow, which are not taken, and one that is."""
    with joined(devices=CPU) as world:
        made = []
        for _ in range(2):
            network = vgg("A", True, "compact", 10, 16)
            initialize(network, "kaiming", 0)
            made.append(engines.build(CONFIG, network, world))
        first, second = made
        before = {name: tensor.clone() for name, tensor in first.weights().items() if "features.0.weight" in name}
        for factor in (1e6, 1e6):
            take_step(first, factor)
        assert all(torch.equal(first.weights()[name], tensor) for name, tensor in before.items())
        take_step(first, 1.0)
        tensors, values = first.state()
        assert values["scaler"]["scale"] == 65536 / 4
        second.load_weights(first.weights())
        second.load_state(tensors, values)
        assert second.state()[1] == values
        for engine in (first, second):
            take_step(engine, 1.0)
        assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in first.weights().items())


@pytest.mark.seconds
@pytest.mark.parametrize("before", ["fp32", "bf16"])
def test_fp16_goes_on_from_another_precision_which_has_no_loss_scale(before: str) -> None:
    with joined(devices=CPU) as world:
        network = vgg("A", True, "compact", 10, 16)
        first = engines.build(msgspec.structs.replace(CONFIG, precision=before), network, world)
        take_step(first, 1.0)
        second = engines.build(CONFIG, network, world)
        second.load_state(*first.state())
        assert second.state()[1]["scaler"]["scale"] == 65536
