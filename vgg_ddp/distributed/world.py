"""The ranks of a run: which of them this process is, and what they exchange outside of the training step.

A `World` is made once and passed down. Its collectives run over CPU memory (gloo), carry bytes or numbers, and do nothing for
a single rank. Every rank must call them, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.distributed import numa, parent, versions
from vgg_ddp.distributed.activity import RESTARTS, Activity
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.errors import UserError
from vgg_ddp.run.console import complain

LOOPBACK = "lo"  # Linux's name of the interface
SECONDS_BEFORE_WORD = 5.0  # of waiting
START_OTHERWISE = "start ranks with vgg-ddp train or torchrun, or unset RANK and WORLD_SIZE"
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
        restarts: how often the supervisor has started the ranks before.
        ranks_per_gpu: how many ranks share a GPU, where they compute on GPUs.
        activity: where this rank says what it is doing.
        host_cores: CPU cores for all ranks of this host, counted before any of them is bound to some.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    store: Store | None = None
    restarts: int = 0
    ranks_per_gpu: int = 1
    activity: Activity = field(default_factory=Activity, compare=False)
    host_cores: int = field(default_factory=cores.usable)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def use_cores(self, config: Config) -> None:
        """Bind this rank to cores, and set its threads, as the configuration says."""
        if config.numa == "auto":
            numa.bind(self)
        self.use_threads(config.threads)

    def use_threads(self, threads: int | Literal["auto"]) -> None:
        """Set the CPU threads of this rank to `threads`; "auto" is `share_of_cores`."""
        torch.set_num_threads(self.share_of_cores() if threads == "auto" else threads)

    def share_of_cores(self) -> int:
        """CPU cores that this host's ranks may use, divided by the ranks; at least 1, at most those it is bound to."""
        return max(1, min(self.host_cores // self.local_size, cores.usable()))

    def cores_for_loading(self) -> int:
        """How many cores of its share a rank uses to load images while it trains; at least 1.

        With a GPU, all but the one that feeds it, at most 16, which decode all it can take; a CPU needs most itself.
        """
        share = self.share_of_cores()
        return max(1, min(share - 1, 16) if self.device.type == "cuda" else share // 8)

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

    def of_all(self, word: str) -> list[str]:
        """The word of every rank, by rank, on every rank; none holds a line break."""
        return self.broadcast(b"\n".join(self.gather(word.encode()))).decode().split("\n")

    def from_main(self, make: Callable[[], bytes]) -> bytes:
        """The bytes that `make` returns on rank 0, on every rank; it is called on rank 0 alone.

        Raises:
            SharedUserError: on every rank, where it raises a `UserError`.
        """
        with self.together():
            made = make() if self.is_main else b""
        return self.broadcast(made)

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
    return Devices().of_rank(local_rank)


@contextlib.contextmanager
def joined(
    timeout: timedelta = timedelta(minutes=10),
    devices: Devices = Devices(),  # noqa: B008 (frozen)
    activity: Activity | None = None,
) -> Iterator[World]:
    """Join the ranks that the environment of torchrun or DeepSpeed describes, or be a single rank; leave them at the end.

    Args:
        devices: what to compute on; rank 0's choice holds for all ranks.
        activity: where this rank says what it is doing; None: nowhere.

    Raises:
        UserError: more ranks on this host than its GPUs take, other versions than rank 0's, or ranks that do not reach each
            other.
    """
    rank, size, local_rank = _variable("RANK", 0), _variable("WORLD_SIZE", 1), _variable("LOCAL_RANK", 0)
    local_size = _variable("LOCAL_WORLD_SIZE", _variable("LOCAL_SIZE", 1))
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} and WORLD_SIZE={size} in the environment name no rank: {START_OTHERWISE}")
    world = World(rank, size, local_rank, local_size, torch.device("cpu"), activity=activity or Activity())
    world = replace(world, restarts=_variable(RESTARTS, 0))
    if size > 1:
        parent.end_with(os.getppid())  # a supervisor killed by SIGKILL cannot end its ranks
        if local_size == size:
            _stay_inside()
        store = PrefixStore(f"ranks {world.restarts}", _meet(rank, size, local_rank, timeout))
        world = replace(world, store=PrefixStore("vgg_ddp", store))
        _same_versions(world, timeout)
        devices = _rank_zero_s(devices, world)
    world = replace(world, device=_own_device(devices, world), ranks_per_gpu=devices.ranks_per_gpu)
    if size > 1:
        _same_kind_of_device(world)
        _connect(world, devices.backend, store, timeout)
    try:
        yield world
    except BaseException:
        # NCCL's communicators wait for the other ranks when they are destroyed: a rank that fails ends without, so that its
        # error is printed and the others lose the connection.
        if world.device.type == "cpu" and dist.is_initialized():
            dist.destroy_process_group()
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def _stay_inside() -> None:
    """Have gloo and NCCL listen where no other host can connect: all ranks are on this one."""
    if LOOPBACK in (name for _, name in socket.if_nameindex()):
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, LOOPBACK)


def _variable(name: str, otherwise: int) -> int:
    """The number that an environment variable holds; `otherwise` where it is empty or not there."""
    text = os.environ.get(name, "")
    if text.strip() and not text.strip().isdecimal():
        raise UserError(f"{name}={text} in the environment is no number: {START_OTHERWISE}")
    return int(text) if text.strip() else otherwise


def _meet(rank: int, size: int, local_rank: int, timeout: timedelta) -> Store:
    """The store at which all ranks meet.

    torch waits for them where Python handles no signals, so a thread waits; after some seconds the user is told.

    Raises:
        UserError: the environment does not say where, or ranks are missing after `timeout`.
    """
    place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    met: Future[Store] = Future()

    def wait_for_others() -> None:
        try:
            met.set_result(next(rendezvous("env://", rank, size, timeout=timeout))[0])
        except BaseException as error:
            met.set_exception(error)

    threading.Thread(target=wait_for_others, daemon=True).start()
    if not wait([met], SECONDS_BEFORE_WORD).done and local_rank == 0:
        complain(f"vgg-ddp: rank {rank} waits at {place} for the others of WORLD_SIZE={size}")
    try:
        return met.result()
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {rank} of {size} met no others at {place!r} ({reason}): {START_OTHERWISE}") from None


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


def _rank_zero_s(devices: Devices, world: World) -> Devices:
    assert world.store is not None
    if world.is_main:
        world.store.set("devices", msgspec.json.encode(devices).decode())
    return msgspec.json.decode(world.store.get("devices"), type=Devices)


def _same_kind_of_device(world: World) -> None:
    """Raises a `UserError` where this rank computes on a CPU and rank 0 on a GPU, or the other way round."""
    assert world.store is not None
    if world.is_main:
        world.store.set("device", world.device.type)
    rank_zero_s = world.store.get("device").decode()
    if world.device.type != rank_zero_s:
        world.announce_failure()
        raise UserError(
            f"rank {world.rank} on {socket.gethostname()} computes with device={world.device.type}, and rank 0 with "
            f"device={rank_zero_s}; set device=cpu, or use hosts with GPUs that torch can use"
        )


def _own_device(devices: Devices, world: World) -> torch.device:
    """The device of this rank, made torch's own.

    Raises:
        UserError: this is a single rank, and its device does not exist.
        ReportedElsewhere: the same with several ranks. The host's first rank prints the error; only then does any end.
    """
    try:
        devices.check(world.local_size)
        device = devices.of_rank(world.local_rank)
    except UserError as error:
        if world.store is None:
            raise
        if world.local_rank == 0:
            print(f"vgg-ddp: {error}", file=sys.stderr, flush=True)
            world.announce_failure()
        with contextlib.suppress(RuntimeError):  # the process that serves the store is gone
            while not world.store.check([FAILURE]):
                time.sleep(0.02)
        raise ReportedElsewhere from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _connect(world: World, gpu_backend: str, store: Store, timeout: timedelta) -> None:
    backend = gpu_backend if world.device.type == "cuda" else "gloo"
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


ALONE = World(0, 1, 0, 1, torch.device("cpu"))  # a rank that has no others, of a process that no launcher started
