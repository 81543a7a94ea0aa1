"""The rendezvous of hosts before any rank starts, with a one-line error for whatever prevents it."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from vgg_ddp.errors import UserError

from .network import is_here

if TYPE_CHECKING:
    from torch.distributed import TCPStore
    from torch.distributed.distributed_c10d import PrefixStore

    from vgg_ddp.distributed.rendezvous import MeetingPlace

REACH_WITHIN = 5.0  # seconds to connect to another host


class Host(msgspec.Struct, frozen=True):
    """What a host says of itself to the others; `serves`: whether the store is in its process."""

    name: str
    address: str
    port: int
    interface: str
    serves: bool


def meet(
    host: str, port: int, address: str, interface: str, nodes: int, launch_id: str, timeout: float
) -> MeetingPlace:
    """Wait until `nodes` hosts have arrived and can connect to one another; the store that they share.

    Args:
        host, port: address of the store; the host that has this address serves it, and has rank 0.
        address, interface: this host's own, which the others connect to.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the port is in use, nobody listens there, a host does not arrive, or one cannot be reached.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    from vgg_ddp.distributed.rendezvous import MeetingPlace

    deadline = time.monotonic() + timeout
    served = _serve(host, port)
    store = PrefixStore(f"launch/{launch_id}", served or _join(host, port, deadline, timeout))
    with _listening(address) as own_port:
        here = Host(socket.gethostname(), address, own_port, interface, served is not None)
        with _arrived(store, here, nodes, f"{host}:{port}") as number:
            _wait_for(store, "arrived", nodes, deadline, f"arrived at {host}:{port} within {timeout:g} s")
        hosts = [_read(store, other) for other in range(nodes)]
        for other in sorted({0, (number + 1) % nodes} - {number}):
            _reach(hosts[other], interface)
        store.add("reached", 1)
        _wait_for(store, "reached", nodes, time.monotonic() + 3 * REACH_WITHIN, "reach the others; see their messages")
    order = sorted(range(nodes), key=lambda other: (not hosts[other].serves, other))
    return MeetingPlace(store, socket.gethostbyname(host), port, order.index(number), nodes)


@contextlib.contextmanager
def _arrived(store: PrefixStore, here: Host, nodes: int, endpoint: str) -> Iterator[int]:
    """This host's number, the first that is free; free again if the context ends by an exception: a host that is stopped
    while it waits for the others can be started again."""
    from torch.distributed import DistError

    said = msgspec.json.encode(here).decode()
    for number in range(nodes):
        if store.compare_set(f"host/{number}", "", said) == said.encode():
            break
    else:
        raise UserError(f"{nodes} hosts are at {endpoint} already; give each launch a port or an --rdzv-id of its own")
    store.add("arrived", 1)
    try:
        yield number
    except BaseException:
        with contextlib.suppress(DistError):  # the host that serves the store is gone
            store.add("arrived", -1)  # before its number is free: the count must never exceed the hosts that are there
            store.compare_set(f"host/{number}", said, "")
        raise


def _read(store: PrefixStore, number: int) -> Host:
    try:
        return msgspec.json.decode(store.get(f"host/{number}"), type=Host)
    except ValueError as error:
        raise UserError(f"host {number} of the launch sent an unreadable description of itself: {error}") from None


def _serve(host: str, port: int) -> TCPStore | None:
    """The store, if its address is this host's and it is not served here already."""
    from vgg_ddp.distributed.rendezvous import serve

    address = socket.gethostbyname(host)
    if not is_here(address):
        return None
    try:
        return serve(address, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UserError(f"{host}:{port} cannot be opened: {error.strerror}") from None
    try:
        _connect(host, port)  # another host of this launch, which runs on this machine as well
    except UserError:
        raise UserError(
            f"port {port} of {host} is in use by another program; choose another in --rdzv-endpoint, on every host"
        ) from None
    return None


def _join(host: str, port: int, deadline: float, timeout: float) -> TCPStore:
    while True:
        try:
            socket.create_connection((host, port), 1).close()
            return _connect(host, port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"no launch was found at {host}:{port} within {timeout:g} s ({error.strerror or error}); is it started "
                    "there, and is the address right?"
                ) from None
            time.sleep(0.2)


def _connect(host: str, port: int) -> TCPStore:
    """A client of the store at `host:port`. It connects in a thread: a program that never answers would block it for ever."""
    from torch.distributed import (
        DistError,
        TCPStore,
    )

    stores: list[TCPStore] = []

    def connect() -> None:
        with contextlib.suppress(DistError):
            stores.append(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=REACH_WITHIN)))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_WITHIN)
    if not stores:
        raise UserError(
            f"what listens at {host}:{port} is another program, not a launch; choose another port, on every host"
        )
    return stores[0]


def _wait_for(store: PrefixStore, key: str, count: int, deadline: float, goal: str) -> None:
    from torch.distributed import DistError

    try:
        while (there := store.add(key, 0)) < count:
            if time.monotonic() > deadline:
                raise UserError(f"{there} of {count} hosts {goal}")
            time.sleep(0.05)
    except DistError:
        raise UserError("the host of the rendezvous ended the launch; see what it says") from None


@contextlib.contextmanager
def _listening(address: str) -> Iterator[int]:
    """A port at `address` that takes connections, as the ranks' ports will."""
    with socket.create_server((address, 0)) as server:
        thread = threading.Thread(target=_accept, args=(server,), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)  # ends the thread's wait
            thread.join()


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def _reach(other: Host, interface: str) -> None:
    try:
        socket.create_connection((other.address, other.port), REACH_WITHIN).close()
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} (interface {interface}) cannot reach {other.name} at {other.address}, its interface "
            f"{other.interface} ({error.strerror or error}); choose others with --interface"
        ) from None
