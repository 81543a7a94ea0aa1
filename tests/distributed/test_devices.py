"""Which device each rank computes on, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import HashStore

from tests.support.rank_processes import Launch
from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.distributed import launcher, numa, world
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.errors import EXIT_USER_ERROR, UserError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def test_a_rank_on_another_kind_of_device_than_rank_0_is_named() -> None:
    """On a host whose GPU is not found, say: its messages would go another way than those of the others."""
    store = HashStore()
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    world._same_kind_of_device(world.World(0, 3, 0, 1, cpu, store=store))
    world._same_kind_of_device(world.World(1, 3, 0, 1, cpu, store=store))
    with pytest.raises(UserError, match=r"rank 2 on .* computes with device=cuda, and rank 0 with device=cpu; "):
        world._same_kind_of_device(world.World(2, 3, 0, 1, cuda, store=store))
    assert world.World(1, 3, 0, 1, cpu, store=store).failure_announced()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch answers on a host with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("devices", "ranks"),
    [
        (Devices(), ["cuda:0", "cuda:1"]),
        (Devices(device="cuda"), ["cuda:0", "cuda:1"]),
        (Devices(ranks_per_gpu=2), ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]),
        (Devices(device="cpu"), ["cpu", "cpu", "cpu"]),
    ],
)
def test_ranks_take_gpus_in_turn(two_gpus: None, devices: Devices, ranks: list[str]) -> None:
    devices.check(len(ranks))
    assert [str(devices.of_rank(rank)) for rank in range(len(ranks))] == ranks
    asked = Config(device=devices.device, ranks_per_gpu=devices.ranks_per_gpu)
    on_cpu = min(len(numa.nodes()), cores.usable()) or 1
    assert launcher.ranks_of_this_host(asked) == (on_cpu if devices.device == "cpu" else len(ranks))


def test_more_ranks_than_gpus_are_refused_with_what_would_do(two_gpus: None) -> None:
    with pytest.raises(UserError, match=r"5 ranks on a host with 2 GPUs; set nproc to 2 or less, .* ranks_per_gpu=3"):
        Devices().check(5)
    Devices(ranks_per_gpu=3).check(5)


def test_nccl_carries_no_messages_between_ranks_of_one_gpu() -> None:
    assert ("nccl" in Devices().backend, "nccl" in Devices(ranks_per_gpu=2).backend) == (True, False)


@NO_GPU
def test_a_gpu_that_is_not_there_is_told_once(launch: Launch) -> None:
    """Rank 0's words decide for all: the ranks read them before they join."""
    ranks = launch("none", "device=cuda", size=2)
    assert ranks.wait() == [EXIT_USER_ERROR] * 2
    (line,) = ranks.stderr.splitlines()
    assert line.startswith("vgg-ddp: device=cuda, and torch ") and line.endswith("set device=cpu")


@NO_GPU
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert (Devices().gpus(), str(Devices().of_rank(3))) == (0, "cpu")


def test_a_rank_without_a_gpu_ends_when_the_store_is_gone(two_gpus: None) -> None:
    """With its own host's first rank, which says why, or with rank 0's host."""

    class Gone(HashStore):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("connection closed")

    with pytest.raises(world.ReportedElsewhere):
        world._own_device(Devices(), world.World(7, 8, 3, 4, torch.device("cpu"), store=Gone()))


def test_without_a_gpu_there_are_no_more_ranks_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a quota of two cores on a host with eight NUMA nodes."""
    monkeypatch.setattr(numa, "nodes", lambda: [{k} for k in range(8)])
    monkeypatch.setattr(launcher.cores, "usable", lambda: 2)
    assert launcher.ranks_of_this_host(Config(device="cpu")) == 2
