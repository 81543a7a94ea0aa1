"""The ranks of a run: which of them this process is, and what they exchange outside of the training step.

A `World` is made once and passed down. Its collectives run over CPU memory (gloo), carry bytes or numbers, and do nothing for
a single rank. Every rank must call them, in the same order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vgg_ddp import cores
from vgg_ddp.distributed import versions
from vgg_ddp.errors import UserError

FAILURE = "failure"  # key in the store: the rank that has reported an error to the user


class SharedUserError(UserError):
    """A `UserError` that every rank raises, so that rank 0 alone prints it."""


class ReportedElsewhere(Exception):
    """Another rank has ended and reported its `UserError` to the user: this rank ends silently."""


@dataclass(frozen=True)
class World:
    """This process among the ranks.

    Attributes:
        rank, size: the number of this process, and how many there are on all hosts.
        local_rank, local_size: the same on this host.
        device: the GPU or CPU that this rank computes on.
        store: a key-value store that the ranks share; None for a single rank.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    store: Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def use_threads(self, threads: int | Literal["auto"]) -> None:
        """Set the CPU threads of this rank to `threads`; "auto" is `share_of_cores`."""
        torch.set_num_threads(self.share_of_cores() if threads == "auto" else threads)

    def share_of_cores(self) -> int:
        """CPU cores that this process may use, divided by the ranks of this host; at least 1."""
        return max(1, cores.usable() // self.local_size)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.sum(torch.zeros(1))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a CPU tensor, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, by rank, on rank 0; an empty list elsewhere."""
        if self.size == 1:
            return [data]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        received = [torch.empty_like(padded) for _ in range(self.size)] if self.is_main else None
        dist.gather(padded, received)
        return [buffer[: int(n)].numpy().tobytes() for buffer, n in zip(received or [], lengths)]

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank. What the other ranks pass is ignored."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main and data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make a `UserError` of one rank an error of all: every rank raises that of the lowest rank.

        Raises:
            SharedUserError: on every rank, if any raised a `UserError` inside.
        """
        message = ""
        try:
            yield
        except UserError as error:
            message = str(error)
        messages = [m.decode() for m in self.gather(message.encode())]
        first = self.broadcast(next((m for m in messages if m), "").encode()).decode()
        if first:
            raise SharedUserError(first)

    def announce_failure(self) -> None:
        """Let the other ranks know that this one reports an error and ends."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # the process that serves the store is gone
                self.store.set(FAILURE, str(self.rank))

    def failure_announced(self) -> bool:
        """Whether another rank has reported an error and ended."""
        if self.store is None:
            return False
        try:
            return self.store.check([FAILURE])
        except RuntimeError:
            return False


def device_of(local_rank: int) -> torch.device:
    """The device of a local rank: its GPU, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


@contextlib.contextmanager
def joined(timeout: timedelta = timedelta(minutes=10)) -> Iterator[World]:
    """Join the ranks that the environment of torchrun or DeepSpeed describes, or be a single rank; leave them at the end.

    Raises:
        UserError: more ranks on this host than GPUs, other versions than rank 0's, or ranks that do not reach each other.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", 1)))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available() and local_size > torch.cuda.device_count():
        raise UserError(
            f"{local_size} ranks on a host with {torch.cuda.device_count()} GPUs; set nproc to that or less"
        )
    device = device_of(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = World(rank, size, local_rank, local_size, device)
    if size > 1:
        _die_with_parent()
        store = next(rendezvous("env://", rank, size, timeout=timeout))[0]
        world = replace(world, store=PrefixStore("vgg_ddp", store))
        _same_versions(world, timeout)
        _connect(world, store, timeout)
    try:
        yield world
    except BaseException:
        # NCCL's communicators wait for the other ranks when they are destroyed: a rank that fails ends without, so that its
        # error is printed and the others lose the connection.
        if device.type == "cpu" and dist.is_initialized():
            dist.destroy_process_group()
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def _same_versions(world: World, timeout: timedelta) -> None:
    """Check that the code and torch are those of rank 0, before any collective call.

    Raises:
        UserError: they are not, or ranks are missing after `timeout`.
        ReportedElsewhere: another rank has reported such an error.
    """
    assert world.store is not None
    if world.is_main:
        world.store.set("versions", versions.encoded())
    difference = versions.difference(world.store.get("versions"))
    if difference:
        world.announce_failure()
        raise UserError(f"rank {world.rank} on {socket.gethostname()} has {difference}; install the same on every host")
    deadline = time.monotonic() + timeout.total_seconds()
    checked = world.store.add("checked", 1)
    while checked < world.size:
        if world.failure_announced():
            raise ReportedElsewhere
        if time.monotonic() > deadline:
            raise UserError(f"{checked} of {world.size} ranks arrived within {timeout.total_seconds():g} s")
        time.sleep(0.02)
        checked = world.store.add("checked", 0)


def _connect(world: World, store: Store, timeout: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if world.failure_announced():
            raise ReportedElsewhere from None
        world.announce_failure()
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "the one of this host's name")
        raise UserError(
            f"rank {world.rank} on {socket.gethostname()} cannot connect to the others by the network interface "
            f"GLOO_SOCKET_IFNAME ({interface}): {str(error).splitlines()[0]}"
        ) from None


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its parent process dies: a supervisor killed by SIGKILL cannot."""
    PR_SET_PDEATHSIG = 1
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
