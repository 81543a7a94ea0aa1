"""Torchrun on this host, or on many by its c10d rendezvous: the same command on each.

torchrun's elastic agent runs in this process, with the arguments that `--dry-run` shows. It stops its ranks in time and
returns their exit code: see `vgg_ddp.distributed.supervisor`.
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
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="to wait for the other hosts (default 300)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help=f"that ranks have to save and end after Ctrl-C, SIGTERM or SIGHUP (default {GRACE:g})",
    )


def start(options: argparse.Namespace, config: Config) -> int:
    """Train on this host, as one of `--nodes`."""
    endpoint, interface, address = _rendezvous(options)
    plan = Plan(options.config, tuple(options.overrides), config, options.nodes, ranks_here(options.nproc, config))
    variables = environment(plan.ranks_per_node, config, interface)
    arguments = torchrun_arguments(plan, endpoint, options.rdzv_id, address)
    if options.dry_run:
        notes = ["each host finds the interface that leads to the endpoint, which cannot be reached from here"]
        show(plan, ["torchrun", *arguments], variables, notes if options.nodes > 1 and interface is None else [])
        return 0
    os.environ.update(variables)
    _run(options, plan, arguments, endpoint, interface, address)


def _rendezvous(options: argparse.Namespace) -> tuple[str, str | None, str]:
    """The endpoint, the interface and this host's address."""
    if options.rdzv_endpoint is None:
        if options.nodes > 1:
            raise UserError(
                f"--nodes {options.nodes} needs --rdzv-endpoint HOST:PORT, the address of one of the hosts, the same on all"
            )
        return "127.0.0.1:0", None, "127.0.0.1"
    host, port = network.parse_endpoint(options.rdzv_endpoint)
    try:
        interface, address = network.choose(options.interface, network.resolve(host))
    except UserError:
        if not options.dry_run or options.interface is not None:
            raise
        return f"{host}:{port}", None, ""  # printed on another machine than it is to run on
    return f"{host}:{port}", interface, address


def torchrun_arguments(plan: Plan, endpoint: str, launch_id: str, address: str) -> list[str]:
    """The arguments of the command `torchrun`."""
    arguments = [f"--nnodes={plan.nodes}", f"--nproc-per-node={plan.ranks_per_node}", "--rdzv-backend=c10d"]
    arguments += [f"--rdzv-endpoint={endpoint}", f"--rdzv-id={launch_id}", "--max-restarts=0"]
    arguments += [f"--local-addr={address}"] if address else []
    return [*arguments, "-m", *plan.training]


def _run(
    options: argparse.Namespace, plan: Plan, arguments: list[str], endpoint: str, interface: str | None, address: str
) -> NoReturn:
    preflight.prepare_data(plan.config)  # before the hosts meet: a long download keeps no rank waiting

    from torch.distributed import run as torchrun

    from vgg_ddp.distributed import supervisor

    settings, _, _ = torchrun.config_from_args(torchrun.parse_args(arguments))
    store = None
    if interface is not None:
        host, port = network.parse_endpoint(endpoint)
        store = hosts.meet(host, port, address, interface, plan.nodes, options.rdzv_id, options.timeout)
        settings.rdzv_configs["is_host"] = "0"  # the store is served already
    program = [sys.executable, *arguments[arguments.index("-m") :]]
    code = supervisor.run(settings, program, options.grace, store)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch down in order would cost a second of the five


LAUNCHER = Launcher("torchrun, on this host or (the same command on each) on many", add_options, start)
