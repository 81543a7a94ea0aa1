"""Ranks bound to NUMA nodes: of this machine, and of simulated ones."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.rank_processes import apart
from vgg_ddp.distributed import numa
from vgg_ddp.distributed.world import World

ALLOWED = sorted(os.sched_getaffinity(0))
RANK = World(0, 1, 0, 1, torch.device("cpu"), host_cores=len(ALLOWED))


def test_nodes_are_those_of_the_kernel() -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    listed = subprocess.run(["lscpu"], env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if line.startswith("NUMA node(s):")]
    most = int(lines[0].split(":")[1]) if lines else 0  # none in some containers
    assert min(1, most) <= len(numa.nodes()) <= most


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """The /sys of a host with two nodes, which have this machine's even and odd cores, and a GPU beside each."""
    for node in (0, 1):
        cores = ",".join(str(core) for core in [*ALLOWED[node::2], 5000 + node])
        gpu = f"bus/pci/devices/0000:{16 + node:02x}:00.0/local_cpulist"
        for file in (f"devices/system/node/node{node}/cpulist", gpu):
            (tmp_path / "sys" / file).parent.mkdir(parents=True)
            (tmp_path / "sys" / file).write_text(f"{cores}\n")
    return tmp_path


def bound(world: World, root: Path) -> list[int]:
    """As a process of its own: the cores that it may run on once it is bound, and a thread with it."""
    numa.bind(world, root)
    return sorted(os.sched_getaffinity(0))


@pytest.mark.skipif(len(ALLOWED) < 2 or len(ALLOWED) % 2 == 1, reason="needs an even number of cores")
@pytest.mark.parametrize(("ranks", "is_bound"), [(1, False), (2, True), (3, False), (4, True)])
def test_ranks_on_cpus_take_nodes_in_turn_unless_that_costs_them_cores(
    ranks: int, is_bound: bool, two_nodes: Path
) -> None:
    last = replace(RANK, local_rank=ranks - 1, local_size=ranks)
    assert apart(bound, last, two_nodes) == (ALLOWED[(ranks - 1) % 2 :: 2] if is_bound else ALLOWED)


class Properties:
    """Where torch says the GPU is: the second on the bus, as with CUDA_VISIBLE_DEVICES=1."""

    pci_domain_id, pci_bus_id, pci_device_id = 0, 17, 0


class OtherProperties(Properties):
    pci_bus_id = 16


def bound_beside_gpu(world: World, root: Path, on_one_node: bool = False) -> list[int]:
    """With a first GPU on the second node, and others there too or on the first one."""

    def properties(device: torch.device) -> type[Properties]:
        return Properties if on_one_node or device.index == 0 else OtherProperties

    torch.cuda.get_device_properties = properties  # type: ignore[assignment]
    return bound(world, root)


@pytest.mark.skipif(len(ALLOWED) < 2 or len(ALLOWED) % 2 == 1, reason="needs an even number of cores")
def test_a_gpu_s_rank_is_bound_beside_it_by_its_address(two_nodes: Path) -> None:
    first = replace(RANK, device=torch.device("cuda", 0), local_size=2)
    assert apart(bound_beside_gpu, first, two_nodes) == ALLOWED[1::2]
    assert apart(bound_beside_gpu, first, two_nodes / "no such bus") == ALLOWED
    assert apart(bound_beside_gpu, first, two_nodes, True) == ALLOWED  # two ranks have no room on one node


def test_a_bound_rank_still_has_its_share_of_the_host_s_cores() -> None:
    """For each of 8 ranks on 2 nodes, although this process sees at most one node."""
    world = replace(RANK, local_size=8, host_cores=8 * len(ALLOWED))
    assert world.share_of_cores() == len(ALLOWED)
