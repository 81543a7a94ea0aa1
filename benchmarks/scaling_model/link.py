"""The time of an all-reduce.

Latencies and formulas are those of NCCL's own tuning model (src/graph/tuning.cc: `baseLat`, `hwLat`, `ncclTopoTuneModel`,
`ncclTopoGetAlgoTime`; NCCL 2.8), by which NCCL chooses between its algorithms and protocols: "Simple" for large messages,
"LL" for small ones, which is quick to start and moves a quarter of the bytes a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ring", "tree", "hierarchical"]
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "tree", "hierarchical")


@dataclass(frozen=True)
class Protocol:
    """Seconds of one step of a ring and of a tree, the share of the bandwidth it reaches, and the seconds to start one."""

    ring: float
    tree: float
    share: float = 1.0
    start: float = 8.4e-6


@dataclass(frozen=True)
class Link:
    """A link by its latency and bandwidth.

    Attributes:
        bandwidth: usable bytes/s in one direction; per device inside a host, per host between hosts.
        protocols: the same number for the links inside and between hosts.
        source: where the figures are from.
    """

    name: str
    bandwidth: float
    protocols: tuple[Protocol, ...]
    source: str


@dataclass(frozen=True)
class Cluster:
    """Hosts of `devices_per_host` devices, linked `inside` each host and `between` them.

    Attributes:
        overlaps: whether messages travel while the devices compute; false where the same cores do both.
        ranks_per_core: where ranks share a core, moving bytes takes this many times as long.
        algorithms: those that the library at hand has.
    """

    inside: Link
    between: Link
    devices_per_host: int
    overlaps: bool = True
    ranks_per_core: float = 1.0
    algorithms: tuple[Algorithm, ...] = ALGORITHMS

    def all_reduce(self, size: float, devices: int, algorithm: Algorithm) -> float:
        """Seconds to sum `size` bytes over `devices` devices, by the protocol that is quickest for this size."""
        if devices == 1 or size == 0:
            return 0.0
        local = min(self.devices_per_host, devices)
        hosts = math.ceil(devices / local)
        seconds = {"ring": self._ring, "tree": self._tree, "hierarchical": self._hierarchical}[algorithm]
        return self.ranks_per_core * min(
            inside.start + seconds(size, local, hosts, inside, between)
            for inside, between in zip(self.inside.protocols, self.between.protocols)
        )

    def quickest(self, size: float, devices: int) -> float:
        """Seconds of the algorithm that is quickest for this size, as NCCL chooses."""
        return min(self.all_reduce(size, devices, algorithm) for algorithm in self.algorithms)

    def _narrowest(self, hosts: int) -> float:
        """Bytes/s that all rings over all devices pass on together."""
        return self.inside.bandwidth if hosts == 1 else min(self.inside.bandwidth, self.between.bandwidth)

    def _ring(self, size: float, local: int, hosts: int, inside: Protocol, between: Protocol) -> float:
        """Each byte goes round twice (Patarasuk & Yuan 2009); the rings enter and leave each host once.

        Large messages wait for one another at each step: NCCL multiplies the latency by 1.9 then ("plateau effect").
        """
        devices = local * hosts
        steps = 2 * (devices - 1)
        outer = 2 * (hosts - 1)
        latency = (steps - outer) * inside.ring + outer * between.ring
        if hosts > 1 and inside.share == 1 and size >= devices / 16 * 65536:
            latency *= 1.9
        return latency + steps / devices * size / (self._narrowest(hosts) * inside.share)

    def _tree(self, size: float, local: int, hosts: int, inside: Protocol, between: Protocol) -> float:
        """Two binary trees over the hosts, a chain inside each (Sanders, Speck & Träff 2009; NCCL); 0.9 of the bandwidth."""
        latency = 2 * ((local - 1) * inside.tree + math.log2(hosts) * between.tree)
        return latency + 2 * size / (0.9 * self._narrowest(hosts) * inside.share)

    def _hierarchical(self, size: float, local: int, hosts: int, inside: Protocol, between: Protocol) -> float:
        """Reduce-scatter inside the host, a ring of each share between the hosts, all-gather inside."""
        bandwidth = self.inside.bandwidth * inside.share
        seconds = 2 * (local - 1) * inside.ring + 2 * (local - 1) / local * size / bandwidth
        if hosts > 1:
            bandwidth = self.between.bandwidth * between.share
            seconds += 2 * (hosts - 1) * between.ring + 2 * (hosts - 1) / hosts * size / bandwidth
        return seconds

    def all_reduce_shares(self, size: float, devices: int, group: int) -> float:
        """Seconds until shares of `size` bytes, one on each device of a group of `group`, are summed over the groups.

        Every device is in one of `group` rings, all at once; those of a host share its port.
        """
        replicas = devices // group
        if replicas < 2:
            return 0.0
        local = min(self.devices_per_host, devices)
        shares = min(group, local)  # different ones in a host
        copies = local // shares
        hosts = replicas // copies
        seconds = (
            2 * (copies - 1) * self.inside.protocols[0].ring + 2 * (copies - 1) / copies * size / self.inside.bandwidth
        )
        if hosts > 1:
            seconds += 2 * (hosts - 1) * self.between.protocols[0].ring
            seconds += 2 * (hosts - 1) / hosts * shares * size / self.between.bandwidth
        return self.ranks_per_core * (self.inside.protocols[0].start + seconds)

    def gather(self, size: float, devices: int) -> float:
        """Seconds until each of `devices` devices has the `size` bytes of every other one (an all-gather); the same for a
        reduce-scatter. What comes into a host comes once, and is passed on inside."""
        if devices == 1:
            return 0.0
        local = min(self.devices_per_host, devices)
        hosts = math.ceil(devices / local)
        seconds = (devices - 1) * size / self.inside.bandwidth + (local - 1) * self.inside.protocols[0].ring
        if hosts > 1:
            into_host = (hosts - 1) * local * size
            seconds = max(seconds, into_host / self.between.bandwidth) + (hosts - 1) * self.between.protocols[0].ring
        return self.ranks_per_core * (self.inside.protocols[0].start + seconds)


def ethernet(gigabits: float) -> float:
    """Usable bytes/s of RoCE v2 on Ethernet: 1,024 bytes of payload in each frame of 1,106 on the wire.

    The headers: preamble 8, Ethernet 14 and 4, gap 12, IPv4 20, UDP 8, base transport 12, checksum 4 (InfiniBand
    specification, annex A17); 1,024 is what the usual Ethernet MTU of 1,500 leaves room for.
    """
    return gigabits * 1e9 / 8 * 1024 / 1106


# baseLat and hwLat: Simple, then LL. Between hosts, LL's latency inside them is 1.8 times as long.
_NVLINK = (Protocol(3.4e-6, 28e-6), Protocol(1.8 * 0.47e-6, 1.8 * 0.52e-6, 0.25, 3.6e-6))
_PCI = (Protocol(5.7e-6, 28e-6), Protocol(1.8 * 1.0e-6, 1.8 * 1.0e-6, 0.25, 3.6e-6))
_NETWORK = (Protocol(9.6e-6, 50e-6), Protocol(2.7e-6, 5.0e-6, 0.25, 3.6e-6))

NVLINK_4 = Link("NVLink 4", 370e9, _NVLINK, "450 GB/s, of which NCCL's rings reach 370 (NVIDIA in nccl-tests #212)")
PCI_3 = Link("PCI Express 3.0 x16", 12e9, _PCI, "NCCL src/graph/topo.h: PCI_BW 12 GB/s")
INFINIBAND = Link(
    "8 x InfiniBand NDR",
    8 * 400e9 / 8 * 4096 / 4122,
    _NETWORK,
    "a 400 Gbit/s port for each of 8 GPUs (NVIDIA DGX H100 datasheet); 26 bytes of headers on 4,096",
)
ETHERNET_100 = Link("100 Gbit/s Ethernet", ethernet(100), _NETWORK, "one port a host, RoCE v2")
ETHERNET_25 = Link("25 Gbit/s Ethernet", ethernet(25), _NETWORK, "one port a host, RoCE v2")

CLUSTERS = {
    "infiniband": Cluster(NVLINK_4, INFINIBAND, 8),
    "ethernet-100": Cluster(NVLINK_4, ETHERNET_100, 8),
    "ethernet-25": Cluster(NVLINK_4, ETHERNET_25, 8),
}
