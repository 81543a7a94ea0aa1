"""What is to be started: the configuration, how many hosts and ranks, and what follows from them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from typing import Literal

from vgg_ddp.config import Config
from vgg_ddp.distributed.launcher import ranks_of_this_host
from vgg_ddp.errors import UserError

MODULE = "vgg_ddp.train"


@dataclass(frozen=True)
class Plan:
    """One training on `nodes` hosts of `ranks_per_node` ranks each.

    Attributes:
        config_path, words: CONFIG and the `key=value` words, as given.
        config: what they say.

    Raises:
        UserError: the ranks or micro-batches do not divide the batch.
    """

    config_path: str
    words: tuple[str, ...]
    config: Config
    nodes: int
    ranks_per_node: int
    micro_batch: int = field(init=False)

    def __post_init__(self) -> None:
        share = self.config.local_batch(self.ranks)
        object.__setattr__(self, "micro_batch", share // self.config.accumulation)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def training(self) -> list[str]:
        """The module and its arguments, as they follow `python -m`."""
        return [MODULE, self.config_path, *self.words]

    def arithmetic(self) -> str:
        """The batch, multiplied out."""
        return (
            f"batch {self.config.batch} = {counted(self.nodes, 'node')} x {counted(self.ranks_per_node, 'rank')}"
            f" x {counted(self.micro_batch, 'image')} x {self.config.accumulation} accumulated"
        )


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def ranks_here(asked: int | None, config: Config) -> int:
    """Ranks of this host: `--nproc`, or `nproc` of the configuration, or one per device."""
    return ranks_of_this_host(asked or config.nproc)


def ranks_there(asked: int | None, config: Config) -> int:
    """Ranks of a host that is not this one, whose devices cannot be counted from here.

    Raises:
        UserError: neither `--nproc` nor the configuration says how many.
    """
    found: int | Literal["auto"] = asked or config.nproc
    if found == "auto":
        raise UserError("nproc=auto counts the devices of this host, not of those that will run; say --nproc N")
    return found


def environment(ranks_per_node: int, config: Config, interface: str | None) -> dict[str, str]:
    """What the ranks of a host with as many cores as this one are started with."""
    threads = config.threads
    if threads == "auto":
        threads = max(1, len(os.sched_getaffinity(0)) // ranks_per_node)
    return {"OMP_NUM_THREADS": str(threads), **interface_variables(interface)}


def interface_variables(interface: str | None) -> dict[str, str]:
    """By which network interface gloo and NCCL talk to other hosts; nothing where they are to find it themselves."""
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}


def show(plan: Plan, command: list[str], variables: dict[str, str], notes: list[str]) -> None:
    """What `--dry-run` prints."""
    print(f"arithmetic   {plan.arithmetic()}")
    for number, (name, value) in enumerate(variables.items()):
        print(f"{'' if number else 'environment':12} {name}={shlex.quote(value)}")
    for number, note in enumerate(notes):
        print(f"{'' if number else 'note':12} {note}")
    print(f"command      {shlex.join(command)}")
