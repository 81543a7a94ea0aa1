"""The ranks of a run: who this process is, and the few things that ranks say to one another outside of the step.

Set up once, passed down, never asked for again. Every collective here is over CPU memory (gloo), carries plain bytes or
numbers, and is a no-op for a single rank.
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

from vgg_ddp.distributed import versions
from vgg_ddp.errors import UserError

FAILURE = "failure"  # the store's key: the rank that told the user what went wrong


class AgreedError(UserError):
    """A user's mistake that every rank knows of, so that one of them can tell it."""


class ToldError(Exception):
    """Another rank met a user's mistake, has told it, and ended: this one ends without a word."""


@dataclass(frozen=True)
class World:
    """This process among the ranks.

    Attributes:
        rank, size: this process and how many there are, over all hosts.
        local_rank, local_size: the same on this host.
        device: what this rank computes on.
        store: keys and values that the ranks share; None for a single rank.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    store: Store | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def use_threads(self, threads: int | Literal["auto"]) -> None:
        """Set the CPU threads of this rank: `threads`, or its share of the cores that this process may use."""
        torch.set_num_threads(self.share_of_cores() if threads == "auto" else threads)

    def share_of_cores(self) -> int:
        """The cores of this host for each of its ranks."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def barrier(self) -> None:
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
        return [part[: int(n)].numpy().tobytes() for part, n in zip(received or [], lengths)]

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
        """A `UserError` that any rank raises inside is raised by every rank: the one of the lowest rank."""
        message = ""
        try:
            yield
        except UserError as error:
            message = str(error)
        messages = [m.decode() for m in self.gather(message.encode())]
        first = self.broadcast(next((m for m in messages if m), "").encode()).decode()
        if first:
            raise AgreedError(first)

    def tell_failure(self) -> None:
        """Have the other ranks know, when they lose this one, that it has told the user what went wrong."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # the store's process is gone
                self.store.set(FAILURE, str(self.rank))

    def failure_is_told(self) -> bool:
        """Whether a rank has told the user what went wrong and ended."""
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
    """Join the ranks that torchrun's or deepspeed's environment names, or be the only one; leave them at the end.

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
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _same_versions(world: World, timeout: timedelta) -> None:
    """Refuse to compute with another version of the code or of torch than rank 0's, before ranks wait for one another."""
    assert world.store is not None
    if world.is_main:
        world.store.set("versions", versions.encoded())
    difference = versions.difference(world.store.get("versions"))
    if difference:
        world.tell_failure()
        raise UserError(f"rank {world.rank} on {socket.gethostname()} has {difference}; install the same on every host")
    deadline = time.monotonic() + timeout.total_seconds()
    checked = world.store.add("checked", 1)
    while checked < world.size:
        if world.failure_is_told():
            raise ToldError
        if time.monotonic() > deadline:
            raise UserError(f"{checked} of {world.size} ranks arrived within {timeout.total_seconds():g} s")
        time.sleep(0.02)
        checked = world.store.add("checked", 0)


def _connect(world: World, store: Store, timeout: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if world.failure_is_told():
            raise ToldError from None
        world.tell_failure()
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "the one of this host's name")
        raise UserError(
            f"rank {world.rank} on {socket.gethostname()} cannot connect to the others by the network interface "
            f"GLOO_SOCKET_IFNAME ({interface}): {str(error).splitlines()[0]}"
        ) from None


def _die_with_parent() -> None:
    """Ask the kernel to end this rank when its launcher dies: one killed by SIGKILL cannot do it itself."""
    PR_SET_PDEATHSIG = 1
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
