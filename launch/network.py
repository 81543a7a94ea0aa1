"""This host's network interfaces, and which of them leads to another host."""

from __future__ import annotations

import fcntl
import socket
import struct

from vgg_ddp.errors import UserError

DEFAULT_PORT = 29500  # torchrun's
SIOCGIFADDR = 0x8915  # <linux/sockios.h>: an interface's IPv4 address


def interfaces() -> dict[str, str]:
    """The interfaces of this host that have an IPv4 address, and the address."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            addresses[name] = socket.inet_ntoa(answer[20:24])
    return addresses


def parse_endpoint(text: str) -> tuple[str, int]:
    """HOST:PORT, or HOST with torchrun's port.

    Raises:
        UserError: it is neither.
    """
    host, _, port = text.partition(":")
    if not host or not (port or str(DEFAULT_PORT)).isdecimal() or int(port or DEFAULT_PORT) > 65535:
        raise UserError(f"--rdzv-endpoint {text} is not HOST:PORT, e.g. --rdzv-endpoint 10.0.0.1:29500")
    return host, int(port or DEFAULT_PORT)


def resolve(host: str, asked: str | None = None) -> str:
    """The IPv4 address of a host by which others reach it.

    Debian maps a host's own name to 127.0.1.1 in /etc/hosts. There the answer is the address of the interface `asked`
    for, or of the interface of the default route.

    Raises:
        UserError: nobody knows the name, or here it is an address that no other host can reach.
    """
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"--rdzv-endpoint: host {host} cannot be found ({error.strerror}); give its address") from None
    if not address.startswith("127.") or host.startswith(("127.", "localhost")):
        return address
    if asked:
        return interfaces().get(asked, address)
    others = [own for own in interfaces().values() if not own.startswith("127.")]
    if len(others) <= 1:
        return others[0] if others else address  # loopback only: no other host can be involved
    if not (outwards := _outwards()):
        raise UserError(f"--rdzv-endpoint: {host} is {address} here, which no other host can reach; give its address")
    return outwards


def _outwards() -> str:
    """The address of the interface of the default route; empty without one."""
    try:
        return _towards("192.0.2.1")  # an address of nobody (RFC 5737)
    except OSError:
        return ""


def _towards(endpoint: str) -> str:
    """The address of the interface that leads to an address; an OSError where none does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((endpoint, DEFAULT_PORT))  # sends nothing: it asks the kernel for its route
        address: str = probe.getsockname()[0]
        return address


def is_here(address: str) -> bool:
    """Whether an IPv4 address is one of this host's."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def choose(asked: str | None, endpoint: str) -> tuple[str, str]:
    """The interface to talk to other hosts by, and its address: the one asked for, or the one that leads to `endpoint`.

    Raises:
        UserError: there is no such interface, it has no address, or none leads there.
    """
    here = interfaces()
    listed = ", ".join(f"{name} ({address})" for name, address in here.items()) or "none"
    if asked is not None:
        if asked not in here:
            exists = asked in [name for _, name in socket.if_nameindex()]
            problem = "has no IPv4 address" if exists else "does not exist"
            raise UserError(f"--interface {asked} {problem} on {socket.gethostname()}; there are: {listed}")
        if here[asked].startswith("127.") and not endpoint.startswith("127."):
            raise UserError(f"--interface {asked} leads to no other host; there are: {listed}")
        return asked, here[asked]
    try:
        address = _towards(endpoint)
    except OSError as error:
        raise UserError(
            f"no interface of {socket.gethostname()} leads to {endpoint} ({error.strerror}); there are: {listed}"
        ) from None
    name = next((name for name, own in here.items() if own == address), None)
    if name is None:
        raise UserError(f"no interface has the address {address} that leads to {endpoint}; say --interface NAME")
    return name, address
