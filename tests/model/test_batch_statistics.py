"""Batch-norm statistics measured anew for an evaluation, and restored."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.rank_processes import CPU, Ranks
from vgg_ddp.distributed.world import joined
from vgg_ddp.model import VGG, batch_norm, initialize, vgg
from vgg_ddp.model.batch_statistics import measured, take_rank_zero

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


def network_and_batches() -> tuple[VGG, list[Tensor]]:
    network = vgg("A", True, "compact", 10, 32)
    initialize(network, "kaiming", 0)
    generator = torch.Generator().manual_seed(0)
    return network, [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(3)]


def measure_together(output: Path) -> int:
    """As a rank: statistics of synchronised batch norms over its part of each batch; then its own; then rank 0's."""
    with joined(devices=CPU) as world:
        world.use_threads(1)
        network, batches = network_and_batches()
        own = copy.deepcopy(network)
        batch_norm.convert(network)
        parts = [images.chunk(world.size)[world.rank] for images in batches]
        with torch.no_grad(), measured(network, parts, FP32):
            save_file(network.state_dict(), output / f"together {world.rank}")
        own(parts[0])
        save_file(own.state_dict(), output / f"own {world.rank}")
        take_rank_zero(own)
        save_file(own.state_dict(), output / f"taken {world.rank}")
    return 0


def test_over_ranks_statistics_are_measured_together_or_taken_from_rank_zero(tmp_path: Path) -> None:
    ranks = Ranks(measure_together, (tmp_path,), 2, tmp_path / "output")
    assert ranks.wait() == [0, 0], ranks.stderr
    network, batches = network_and_batches()
    with torch.no_grad(), measured(network, batches, FP32):
        for rank in (0, 1):
            torch.testing.assert_close(load_file(tmp_path / f"together {rank}"), dict(network.state_dict()))
    own, other, taken = (load_file(tmp_path / name) for name in ("own 0", "own 1", "taken 1"))
    assert all(torch.equal(taken[name], value) for name, value in own.items())
    assert any(not torch.equal(other[name], value) for name, value in own.items())
