"""Two hosts on one machine: network namespaces joined by a link (veth) whose bandwidth can be set (`tc tbf`).

Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        interface: the one that leads to the other host.
        address: IPv4, of that interface.
    """

    namespace: str
    interface: str
    address: str

    @property
    def inside(self) -> list[str]:
        """The prefix of a command that is to run in this namespace."""
        return ["ip", "netns", "exec", self.namespace]


Hosts = tuple[Host, Host]


def limit(hosts: Hosts, megabits: float) -> None:
    """Set the bandwidth of the link, each way."""
    # The bucket holds 4 ms of the link, and at least what the kernel passes on at once; the queue 100 ms.
    burst = max(65536, int(megabits * 1e6 / 8 * 0.004))
    shaping = ["root", "tbf", "rate", f"{megabits:g}mbit", "burst", str(burst), "latency", "100ms"]
    for host in hosts:
        _run("tc", "-n", host.namespace, "qdisc", "replace", "dev", host.interface, *shaping)


def why_not() -> str | None:
    """Why network namespaces cannot be made here; None if they can."""
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (Debian: iproute2)"
    try:
        with two_hosts() as hosts:
            limit(hosts, 1000)
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


@contextmanager
def one_host() -> Iterator[Hosts]:
    """The same host twice: a namespace with a loopback interface of its own, so that its bytes can be counted."""
    host = Host(f"vgg-ddp-{os.getpid()}-lo", "lo", "127.0.0.1")
    with ExitStack() as stack:
        _namespace(host, stack)
        yield host, host


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two namespaces that reach each other at 10.77.0.1 and 10.77.0.2, without a limit at first; gone at the end.

    Nothing crosses the link but what processes send, so that its bytes can be counted: each knows the other's hardware
    address (no ARP), and none has an IPv6 address (no neighbour discovery).
    """
    process = os.getpid()
    first, second = (
        Host(f"vgg-ddp-{process}-{side}", f"vgg{process}{side}", f"10.77.0.{number}")
        for number, side in enumerate("ab", start=1)
    )
    with ExitStack() as stack:
        for host in (first, second):
            _namespace(host, stack)
        ends = [["name", host.interface, "netns", host.namespace] for host in (first, second)]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        hardware = {first: "02:00:00:00:00:01", second: "02:00:00:00:00:02"}
        for host, other in ((first, second), (second, first)):
            link = ["link", "set", "dev", host.interface]
            _run("ip", "-n", host.namespace, *link, "address", hardware[host], "addrgenmode", "none", "up")
            on = ["dev", host.interface]
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", *on)
            known = [other.address, "lladdr", hardware[other], "nud", "permanent"]
            _run("ip", "-n", host.namespace, "neighbour", "add", *known, *on)
        yield first, second


def _namespace(host: Host, stack: ExitStack) -> None:
    _run("ip", "netns", "add", host.namespace)
    stack.callback(_run, "ip", "netns", "delete", host.namespace)  # and its end of the link
    _run("ip", "-n", host.namespace, "link", "set", "lo", "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
