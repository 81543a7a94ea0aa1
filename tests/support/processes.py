"""Processes by their ids: those that another has started, and whether they run."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def ranks_of(supervisor: int) -> list[int]:
    """The ranks of a supervisor, in their order: the children of the server that they are forked from, its only child."""
    return [rank for server in children(supervisor) for rank in children(server)]


def children(pid: int) -> list[int]:
    """The processes that its main thread has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def assert_gone(processes: list[int]) -> None:
    """Wait for the processes to end; the limit only keeps a failing test from hanging."""
    deadline = time.monotonic() + 100
    while left := [pid for pid in processes if runs(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return False
