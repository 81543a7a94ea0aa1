"""Torchrun on this host, or on many: the same command on each.

torchrun's elastic agent runs in this process, over a rendezvous of our own (`hosts`, `vgg_ddp.distributed.rendezvous`). It
stops its ranks in time and returns their exit code: see `vgg_ddp.distributed.supervisor`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from vgg_ddp import preflight
from vgg_ddp.config import Config
from vgg_ddp.errors import UserError

from . import hosts, network
from .launcher import Launcher
from .plan import Plan, environment, ranks_here, show

GRACE = 4.0  # seconds; every process must have ended 5 s after a signal


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this launcher alone."""
    parser.add_argument(
        "--rdzv-endpoint", metavar="HOST:PORT", help="one of the hosts and a free port, the same on all"
    )
    parser.add_argument("--rdzv-id", default="vgg_ddp", metavar="NAME", help="a name that the hosts share")
    parser.add_argument("--interface", metavar="NAME", help="network interface (default: the one that leads to HOST)")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="limit to wait for other hosts (default 300)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help=f"time for the ranks to save and exit after Ctrl-C, SIGTERM or SIGHUP (default {GRACE:g})",
    )


def start(options: argparse.Namespace, config: Config) -> int:
    """Train on this host, as one of `--nodes`."""
    endpoint, interface, address = _rendezvous(options)
    plan = Plan(options.config, tuple(options.overrides), config, options.nodes, ranks_here(options.nproc, config))
    variables = environment(plan.ranks_per_node, config, interface)
    if options.dry_run:
        notes = ["each host has a --node-rank of its own, from 0; the launcher counts the hosts as they arrive"]
        if interface is None:
            notes.append("each host finds the interface that leads to the endpoint, which cannot be reached from here")
        show(plan, ["torchrun", *torchrun_arguments(plan, endpoint)], variables, notes if options.nodes > 1 else [])
        return 0
    os.environ.update(variables)
    _run(options, plan, endpoint, interface, address)


def _rendezvous(options: argparse.Namespace) -> tuple[str, str | None, str]:
    """The endpoint, the interface and this host's address."""
    if options.rdzv_endpoint is None:
        if options.nodes > 1:
            raise UserError(
                f"--nodes {options.nodes} needs --rdzv-endpoint HOST:PORT, the address of one of the hosts, the same on all"
            )
        return f"127.0.0.1:{network.DEFAULT_PORT}", None, ""
    host, port = network.parse_endpoint(options.rdzv_endpoint)
    try:
        interface, address = network.choose(options.interface, network.resolve(host, options.interface))
    except UserError:
        if not options.dry_run or options.interface is not None:
            raise
        return f"{host}:{port}", None, ""  # a dry run on a machine that is not one of the hosts
    return f"{host}:{port}", interface, address


def torchrun_arguments(plan: Plan, endpoint: str) -> list[str]:
    """The arguments of the equivalent `torchrun` command."""
    address, port = network.parse_endpoint(endpoint)
    arguments = [f"--nnodes={plan.nodes}", f"--nproc-per-node={plan.ranks_per_node}", "--node-rank=0"]
    return [*arguments, f"--master-addr={address}", f"--master-port={port}", "-m", *plan.training]


def _run(options: argparse.Namespace, plan: Plan, endpoint: str, interface: str | None, address: str) -> NoReturn:
    preflight.prepare_data(plan.config)  # before the hosts meet: a long download keeps no rank waiting

    from vgg_ddp.distributed import supervisor
    from vgg_ddp.distributed.fork_server import ForkServer

    module, *arguments = plan.training
    config = plan.config
    task = supervisor.Task(module, arguments, [*arguments, "resume=auto"], config.restarts, config.timeout)
    with ForkServer(module) as server:  # which imports torch while this process does
        from vgg_ddp.distributed import rendezvous

        if interface is None:
            place = rendezvous.of_one_host()
        else:
            host, port = network.parse_endpoint(endpoint)
            there = network.resolve(host, options.interface)
            place = hosts.meet(there, port, address, interface, plan.nodes, options.rdzv_id, options.timeout)
        code = supervisor.run(task, plan.ranks_per_node, place, server, options.grace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly shutdown of torch would cost one of the five seconds


LAUNCHER = Launcher("torchrun, on this host or (the same command on each) on many", add_options, start)
