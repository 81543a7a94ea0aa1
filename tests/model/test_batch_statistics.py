"""Batch-norm statistics measured anew for an evaluation, and put back."""

from __future__ import annotations

import copy

import torch

from vgg_ddp.model import initialize, vgg
from vgg_ddp.model.batch_statistics import measured

FP32 = torch.autocast("cpu", enabled=False)


def test_statistics_are_the_mean_over_the_batches_and_are_put_back() -> None:
    """Against torch's own cumulative average in a copy of the network."""
    network = vgg("A", True, "compact", 10, 32)
    initialize(network, "kaiming", 0)
    generator = torch.Generator().manual_seed(0)
    network(torch.randn(8, 3, 16, 16, generator=generator))
    before = copy.deepcopy(network.state_dict())
    batches = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(3)]
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for images in batches:
            other(images)
        with measured(network, batches, FP32):
            inside = copy.deepcopy(network.state_dict())
            found, expected = network.eval()(batches[0]), other.eval()(batches[0])
    assert torch.equal(found, expected)
    assert all(torch.equal(inside[name], value) for name, value in other.state_dict().items())
    assert any(not torch.equal(inside[name], before[name]) for name in before if "running_mean" in name)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
