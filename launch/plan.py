"""What is to be started: the configuration, the number of hosts and ranks, and what follows from them."""

from __future__ import annotations

import shlex
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from typing import Literal

from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.distributed.launcher import ranks_of_this_host
from vgg_ddp.errors import UserError

MODULE = "vgg_ddp.train"


@dataclass(frozen=True)
class Plan:
    """One training on `nodes` hosts of `ranks_per_node` ranks each.

    Attributes:
        config_path, overrides: CONFIG and the `key=value` arguments, as given.
        config: the configuration that they result in.

    Raises:
        UserError: the ranks or micro-batches do not divide the batch.
    """

    config_path: str
    overrides: tuple[str, ...]
    config: Config
    nodes: int
    ranks_per_node: int
    micro_batch: int = field(init=False)

    def __post_init__(self) -> None:
        local_batch = self.config.local_batch(self.ranks)
        object.__setattr__(self, "micro_batch", local_batch // self.config.accumulation)

    @property
    def ranks(self) -> int:
        """The number of ranks on all hosts together."""
        return self.nodes * self.ranks_per_node

    @property
    def training(self) -> list[str]:
        """The module and its arguments, as they follow `python -m`."""
        return [MODULE, self.config_path, *self.overrides]

    def arithmetic(self) -> str:
        """The global batch as a product of its factors, in words."""
        return (
            f"batch {self.config.batch} = {counted(self.nodes, 'node')} x {counted(self.ranks_per_node, 'rank')}"
            f" x {counted(self.micro_batch, 'image')} x {self.config.accumulation} accumulated"
        )


def counted(number: int, thing: str) -> str:
    """A number with its noun, e.g. "1 node" or "2 nodes"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def count(text: str) -> int:
    """The type of an option that counts hosts, ranks or GPUs.

    Raises:
        ArgumentTypeError: it is no number from 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def ranks_here(asked: int | None, config: Config) -> int:
    """Ranks of this host: `--nproc`, or `nproc` of the configuration, or one per device."""
    return asked or ranks_of_this_host(config)


def ranks_there(asked: int | None, gpus: int | None, config: Config) -> int:
    """Ranks of a host that is not this one, whose devices cannot be counted from here: `--nproc`, or `nproc` of the
    configuration, or as many as its GPUs take.

    Args:
        gpus: that are asked for on each host; None: not said.

    Raises:
        UserError: nothing says how many, or there are more than the GPUs take.
    """
    fit = None if gpus is None else gpus * config.ranks_per_gpu
    ranks: int | Literal["auto"] | None = asked or config.nproc
    if ranks == "auto":
        ranks = fit
    if ranks is None:
        raise UserError("nproc=auto counts the devices of this host, not of those that will run; say --nproc N")
    if fit is not None and ranks > fit and config.device != "cpu":
        raise UserError(f"{ranks} ranks on a host with {gpus} GPUs; set --nproc to {fit} or less, or ranks_per_gpu")
    return ranks


def environment(ranks_per_node: int, config: Config, interface: str | None) -> dict[str, str]:
    """The environment variables of the ranks, for a host with as many cores as this one."""
    asked = cores.openmp_threads() if config.threads == "auto" else config.threads
    threads = asked or max(1, cores.usable() // ranks_per_node)
    own = {} if asked else {cores.OWN_THREADS: "1"}  # else the ranks would take it for the user's choice, and keep it
    return {"OMP_NUM_THREADS": str(threads), **own, **interface_variables(interface)}


def interface_variables(interface: str | None) -> dict[str, str]:
    """The variables that set the network interface of gloo and NCCL; none where they are to choose it themselves."""
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}


def show(plan: Plan, command: list[str], variables: dict[str, str], notes: list[str]) -> None:
    """Print what would be started, for `--dry-run`."""
    print(f"arithmetic   {plan.arithmetic()}")
    for number, (name, value) in enumerate(variables.items()):
        print(f"{'' if number else 'environment':12} {name}={shlex.quote(value)}")
    for number, note in enumerate(notes):
        print(f"{'' if number else 'note':12} {note}")
    print(f"command      {shlex.join(command)}")
