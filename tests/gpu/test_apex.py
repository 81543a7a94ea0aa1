"""NVIDIA's apex, where it is installed and compiled: its optimizers and its loss take the steps of torch's and ours."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vgg_ddp.config.optimizer import LossConfig, OptimizerConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.optim import losses, nvidia_apex, optimizers


@pytest.fixture(autouse=True)
def compiled(world: World) -> None:
    if world.device.type == "cpu":
        pytest.skip("apex needs a GPU")
    if nvidia_apex.status() != "compiled":
        pytest.skip(nvidia_apex.MEANINGS[nvidia_apex.status()])


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_steps_of_its_optimizers(name: str, world: World) -> None:
    torch.manual_seed(0)
    networks = [nn.Linear(64, 32).to(world.device)]
    networks.append(copy.deepcopy(networks[0]))
    images = torch.randn(16, 64, device=world.device)
    built = [
        optimizers.build(dict(network.named_parameters()), OptimizerConfig(name=name, implementation=implementation))  # type: ignore[arg-type]
        for network, implementation in zip(networks, ("apex", "torch"))
    ]
    for _ in range(3):
        for network, optimizer in zip(networks, built):
            network(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(*(network.parameters() for network in networks)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_cross_entropy(smoothing: float, world: World) -> None:
    if not nvidia_apex.has_xentropy():
        pytest.skip("apex was built without its cross entropy")
    logits = torch.randn(64, 10, device=world.device)
    labels = torch.arange(64, device=world.device) % 10
    found, expected = (
        losses.build(LossConfig(label_smoothing=smoothing, implementation=name), world.device)(logits, labels)  # type: ignore[arg-type]
        for name in ("apex", "torch")
    )
    torch.testing.assert_close(found, expected)
