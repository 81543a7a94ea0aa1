"""DeepSpeed's own launcher: over ssh to the hosts of a hostfile, or without ssh by the same command on each."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from vgg_ddp import config as configuration
from vgg_ddp.config import Config
from vgg_ddp.errors import Signalled, UserError

from . import network
from .launcher import Launcher
from .plan import Plan, environment, ranks_here, show

ENGINE = "engine=deepspeed"
GRACE = 30.0  # seconds, as DeepSpeed's launcher gives the ranks itself


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this launcher alone."""
    parser.add_argument("--hostfile", metavar="FILE", help="lines 'HOST slots=N'; needed for more than one host")
    parser.add_argument("--master-addr", metavar="HOST", help="the first host (default: the hostfile's first)")
    parser.add_argument("--master-port", type=int, default=network.DEFAULT_PORT, metavar="PORT", help="(default 29500)")
    parser.add_argument(
        "--node-rank", type=int, metavar="K", help="without ssh: this is host K of the hostfile, from 0"
    )
    parser.add_argument("--interface", metavar="NAME", help="network interface (default: found by the ranks)")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help=f"that ranks here have to save and end after Ctrl-C, SIGTERM or SIGHUP (default {GRACE:g})",
    )


def start(options: argparse.Namespace, config: Config) -> int:
    """Train by DeepSpeed's launcher."""
    overrides = [*(override for override in options.overrides if override != ENGINE), ENGINE]
    config = configuration.load(options.config, overrides)
    plan = Plan(options.config, tuple(overrides), config, options.nodes, ranks_here(options.nproc, config))
    interface = network.choose(options.interface, options.master_addr or "")[0] if options.interface else None
    variables = environment(plan.ranks_per_node, config, interface)
    command = ["deepspeed", *deepspeed_arguments(plan, options)]
    if options.dry_run:
        notes = ["over ssh only PYTHON*, NCCL* and the like are passed on: put the rest into ~/.deepspeed_env"]
        show(plan, command, variables, notes if plan.nodes > 1 and options.node_rank is None else [])
        return 0
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("deepspeed is not installed; pip install 'vgg_ddp[deepspeed]', or use the launcher torchrun")
    program = str(Path(sys.executable).parent / "deepspeed")
    os.environ.update(variables)
    return _run([program, *command[1:]], plan.nodes > 1 and options.node_rank is None, options.grace)


def _run(command: list[str], by_ssh: bool, grace: float) -> int:
    """DeepSpeed's launcher, to its end; its exit code is that of a rank.

    A stop signal goes to the ranks, which save and end: the launcher, which a signal ends at once, would leave them running.
    After `grace` seconds, or at a second Ctrl-C, all that run here are killed.

    Raises:
        Signalled: before there were ranks, or where they are on other hosts, which the launcher then tells to end.
    """
    process = None
    try:
        process = subprocess.Popen(command, start_new_session=True)  # out of reach of a Ctrl-C, which is handed on
        return process.wait()
    except Signalled as signalled:
        if process is None:
            raise
        group = process.pid

        def kill(number: int, frame: object) -> None:
            os.killpg(group, signal.SIGKILL)
            os._exit(128 + number)

        signal.signal(signal.SIGINT, kill)
        ranks = [] if by_ssh else [rank for agent in _children(group) for rank in _children(agent)]
        if not ranks:
            os.kill(group, signal.SIGTERM) if by_ssh else os.killpg(group, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            raise
        print(f"launch: {signalled}; the ranks are asked to save", file=sys.stderr, flush=True)
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            process.wait()
            print(f"launch: the ranks had not ended after {grace:g} s and were killed", file=sys.stderr)
            return signalled.exit_code


def _children(process: int) -> list[int]:
    """Those that its main thread has started."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def deepspeed_arguments(plan: Plan, options: argparse.Namespace) -> list[str]:
    """The arguments of the command `deepspeed`.

    Raises:
        UserError: many hosts without a hostfile, or a hostfile that is missing or too short.
    """
    arguments = []
    if plan.nodes > 1:
        arguments += _hosts(plan, options)
    elif options.hostfile is not None:
        raise UserError("--hostfile is for many hosts; say --nodes N as well")
    arguments += [f"--num_gpus={plan.ranks_per_node}", f"--master_port={options.master_port}", "--no_local_rank"]
    return [*arguments, "--module", *plan.training]


def _hosts(plan: Plan, options: argparse.Namespace) -> list[str]:
    if options.hostfile is None:
        raise UserError(f"--nodes {plan.nodes} needs --hostfile FILE with a line 'HOST slots=N' for each host")
    try:
        lines = Path(options.hostfile).read_text().splitlines()
    except OSError as error:
        raise UserError(f"--hostfile {options.hostfile} cannot be read: {error.strerror}") from None
    names = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if len(names) < plan.nodes:
        raise UserError(f"--hostfile {options.hostfile} lists {len(names)} hosts, fewer than --nodes {plan.nodes}")
    arguments = [f"--hostfile={options.hostfile}", f"--num_nodes={plan.nodes}"]
    arguments += [f"--master_addr={options.master_addr or names[0]}"]
    if options.node_rank is not None:
        arguments += ["--no_ssh", f"--node_rank={options.node_rank}"]
    return arguments


LAUNCHER = Launcher("DeepSpeed's launcher, on this host or on those of a hostfile", add_options, start)
