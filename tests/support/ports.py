"""Ports of this host that are free, and that nothing takes before a test does."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Below the ports that the kernel itself assigns; each test worker begins at a different one.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_candidates = itertools.count(15000 + (os.getpid() + 997 * _worker) % 15000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; each call gives another."""
    for port in _candidates:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError  # not reached: the candidates are endless


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections; it is bound, so that no other server gets it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
