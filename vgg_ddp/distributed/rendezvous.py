"""Where the hosts of a launch and their ranks meet: one key-value store, which one of the supervisors serves.

It replaces torchrun's c10d rendezvous, which unpickles what it finds in a store that listens on every interface. This
store listens at one address, and none of its content is executed: the agent reads JSON, the ranks numbers and JSON.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

BACKEND = "vgg_ddp"  # its name in the agent's records
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class MeetingPlace:
    """The store that the supervisors of a launch share, seen from one of them.

    Attributes:
        store: a connection to it, under a prefix of the launch's own.
        address, port: where it listens, for the ranks.
        host, hosts: the number of this host, and how many there are.
    """

    store: Store
    address: str
    port: int
    host: int = 0
    hosts: int = 1


def of_one_host() -> MeetingPlace:
    """A store that is served here, for this host alone: nothing outside of it can connect."""
    store = serve(LOOPBACK)
    return MeetingPlace(PrefixStore("launch", store), LOOPBACK, store.port)


def serve(address: str, port: int = 0) -> TCPStore:
    """A store that listens at this address alone; 0: at a free port.

    Raises:
        OSError: this host does not have the address, or the port is in use.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        port = listener.getsockname()[1]
        store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.fileno())
        listener.detach()  # the store's now, which closes it
    return store


class Rendezvous(RendezvousHandler):
    """Tells torchrun's agent what is known already: the store, and the number of this host."""

    def __init__(self, place: MeetingPlace, name: str) -> None:
        self._place, self._name = place, name

    def get_backend(self) -> str:
        """See `RendezvousHandler`, as for the other methods."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """The ranks meet in the same store: it is the only one."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:  # noqa: D102
        place = self._place
        store = PrefixStore(f"agents/{self._name}", place.store)
        return RendezvousInfo(store, place.host, place.hosts, RendezvousStoreInfo(place.address, place.port))

    def is_closed(self) -> bool:  # noqa: D102
        return False

    def set_closed(self) -> None:  # noqa: D102
        pass

    def num_nodes_waiting(self) -> int:  # noqa: D102
        return 0

    def get_run_id(self) -> str:  # noqa: D102
        return self._name

    def shutdown(self) -> bool:  # noqa: D102
        return True
