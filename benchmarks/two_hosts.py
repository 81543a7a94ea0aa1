"""Two hosts on one machine: network namespaces joined by a pair of virtual interfaces whose bandwidth can be set.

Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Hosts:
    """Where the two ranks run.

    Attributes:
        namespaces: of each rank; the same one twice for one host.
        interface: what the ranks talk over.
        address: of the first rank.
    """

    namespaces: tuple[str, str]
    interface: str
    address: str

    def command(self, rank: int) -> list[str]:
        """What to put before a command that is to run where the rank is."""
        return ["ip", "netns", "exec", self.namespaces[rank]]

    def limit(self, megabits: float) -> None:
        """Set the bandwidth of the link, each way."""
        for namespace in self.namespaces:
            rate = f"{megabits:g}mbit"
            # The bucket holds 4 ms of the link, and at least what the kernel passes on at once; the queue 100 ms.
            burst = max(65536, int(megabits * 1e6 / 8 * 0.004))
            _ip("netns", "exec", namespace, "tc", "qdisc", "replace", "dev", self.interface, "root", "tbf",
                "rate", rate, "burst", str(burst), "latency", "100ms")  # fmt: skip


def why_not() -> str | None:
    """What is lacking for `one_host` and `two_hosts`; None if nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"{' and '.join(lacking)} not found: install the package iproute2" if lacking else None


@contextmanager
def one_host() -> Iterator[Hosts]:
    """A namespace of its own with a loopback interface, so that its bytes can be counted."""
    name = f"vgg-ddp-{os.getpid()}-lo"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield Hosts((name, name), "lo", "127.0.0.1")
    finally:
        _ip("netns", "delete", name)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two namespaces, joined; without a limit at first."""
    names = (f"vgg-ddp-{os.getpid()}-a", f"vgg-ddp-{os.getpid()}-b")
    made = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            _ip("-n", name, "link", "set", "veth0", "up")
        yield Hosts(names, "veth0", ADDRESSES[0])
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
