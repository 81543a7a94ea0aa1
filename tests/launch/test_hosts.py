"""The meeting of hosts, seen from the store that they share; on real hosts: test_two_hosts."""

from __future__ import annotations

import pytest
from torch.distributed.distributed_c10d import PrefixStore

from launch.hosts import Host, _arrived, _read
from vgg_ddp.distributed import rendezvous
from vgg_ddp.errors import Signalled, UserError


def test_a_host_that_is_stopped_while_it_waits_takes_no_place() -> None:
    served = rendezvous.serve(rendezvous.LOOPBACK)
    store = PrefixStore("launch/test", served)
    one, two, three, four = (Host(f"host {port}", "10.0.0.1", port, "eth0", False) for port in range(4))
    with _arrived(store, one, 3, "here") as first:
        with pytest.raises(Signalled), _arrived(store, two, 3, "here"):
            assert store.add("arrived", 0) == 2
            raise Signalled(15)
        assert store.add("arrived", 0) == 1
        with _arrived(store, three, 3, "here") as second, _arrived(store, two, 3, "here") as third:
            assert [_read(store, number) for number in (first, second, third)] == [one, three, two]
            assert store.add("arrived", 0) == 3
            with pytest.raises(UserError, match="3 hosts are at here already"), _arrived(store, four, 3, "here"):
                pass
