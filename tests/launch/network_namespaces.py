"""Two hosts as network namespaces of this machine, joined by a cable (veth) of a set bandwidth (`tc tbf`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A namespace: `inside` begins a command line that runs there."""

    namespace: str
    interface: str
    address: str

    @property
    def inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]


@contextlib.contextmanager
def two_hosts(bandwidth: str = "1gbit") -> Iterator[tuple[Host, Host]]:
    """Two namespaces that reach each other at 10.77.0.1 and 10.77.0.2; gone at the end. `bandwidth` is for each direction."""
    name = f"vgg{os.getpid() % 100000}"
    hosts = [Host(f"{name}{side}", f"{name}{side}", f"10.77.0.{number}") for number, side in ((1, "a"), (2, "b"))]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "delete", host.namespace)  # and its end of the cable
        ends = [["name", host.interface, "netns", host.namespace] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
            shaping = ["root", "tbf", "rate", bandwidth, "burst", "256kb", "latency", "50ms"]
            _run("tc", "-n", host.namespace, "qdisc", "add", "dev", host.interface, *shaping)
        yield hosts[0], hosts[1]


def why_not() -> str | None:
    """Why there can be no namespaces here; None if there can."""
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: iproute2)"
    try:
        with two_hosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
