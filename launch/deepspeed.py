"""DeepSpeed's own launcher: over ssh to the hosts of a hostfile, or without ssh by the same command on each."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vgg_ddp import config as configuration
from vgg_ddp import cores, preflight
from vgg_ddp.config import Config
from vgg_ddp.errors import EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR, STOP_SIGNALS, Signalled, UserError

from . import network
from .launcher import Launcher
from .plan import Plan, environment, ranks_here, show

ENGINE = "engine=deepspeed"
GRACE = 30.0  # seconds, the same as DeepSpeed's launcher gives its ranks
CODES = (EXIT_OK, EXIT_USER_ERROR, EXIT_STOPPED, *(128 + number for number in STOP_SIGNALS))  # of a command, besides 1
NOT_PASSED_ON = (
    "over ssh only PYTHON*, NCCL* and the like are passed on: put the rest, WANDB_API_KEY say, into ~/.deepspeed_env"
)


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
        help=f"time for this host's ranks to save and exit after Ctrl-C, SIGTERM or SIGHUP (default {GRACE:g})",
    )


def start(options: argparse.Namespace, config: Config) -> int:
    """Train by DeepSpeed's launcher."""
    overrides = [*(override for override in options.overrides if override != ENGINE), ENGINE]
    config = configuration.load(options.config, overrides)
    plan = Plan(options.config, tuple(overrides), config, options.nodes, ranks_here(options.nproc, config))
    interface = network.choose(options.interface, options.master_addr or "")[0] if options.interface else None
    variables = environment(plan.ranks_per_node, config, interface)
    command = ["deepspeed", *deepspeed_arguments(plan, options)]
    by_ssh = _by_ssh(plan, options)
    if options.dry_run:
        show(plan, command, variables, [NOT_PASSED_ON] if by_ssh else [])
        return 0
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("deepspeed is not installed; pip install 'vgg_ddp[deepspeed]', or use the launcher torchrun")
    if by_ssh and shutil.which("pdsh") is None:
        raise UserError(
            f"--nodes {plan.nodes} over ssh needs the program pdsh, which is not on PATH; install it, or start the same "
            "command on each host with a --node-rank of its own"
        )
    if not by_ssh:
        preflight.prepare_data(config)  # before the ranks meet, which wait ten minutes for one another
    program = Path(sys.executable).with_name("deepspeed")
    start_it = [str(program)] if program.is_file() else [sys.executable, "-m", "deepspeed.launcher.runner"]
    os.environ.update(variables)
    with _exported(variables) if by_ssh else contextlib.nullcontext():
        code = _run([*start_it, *command[1:]], by_ssh, options.grace)
    return exit_code(code, Path(config.run.dir) if plan.nodes == 1 else None)


def exit_code(code: int, run: Path | None) -> int:
    """The exit code of a launch: that of DeepSpeed's launcher if it is one that our commands have, else 1.

    The launcher's is 256 - n after signal n killed a rank, 76 after a rank lost another, 0 if its own process was killed.

    Args:
        run: the run's folder, which shows whether a 0 can be trusted; None where it may be on another host.
    """
    if code == EXIT_OK and run is not None and _cut_off(run):
        print(f"launch: DeepSpeed's launcher ended, but not the training in {run}; was it killed?", file=sys.stderr)
        return 1
    return code if code in CODES else 1


def _cut_off(folder: Path) -> bool:
    """Whether the training in a run's folder, with its evaluation, has not come to any end."""
    from vgg_ddp.run import outcome
    from vgg_ddp.run.directory import RunDirectory

    run = RunDirectory(folder)
    return not run.config.is_file() or outcome.noted(run).state == "running"


@contextlib.contextmanager
def _exported(variables: dict[str, str]) -> Iterator[None]:
    """Inside, DeepSpeed's launcher sets `variables` on the other hosts too.

    The launcher reads them from a file: we write one in which the lines of the user's file come last, and so take precedence.
    """
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    own: list[str] = []
    for path in (Path(os.path.expanduser("~"), name), Path(name)):  # where DeepSpeed looks
        if path.is_file():
            own += [line for line in path.read_text().splitlines() if line.strip()]
    if any(line.startswith("OMP_NUM_THREADS=") for line in own):  # then the user has chosen the number
        variables = {variable: value for variable, value in variables.items() if variable != cores.OWN_THREADS}
    lines = [*(f"{variable}={value}" for variable, value in variables.items()), *own]
    with tempfile.NamedTemporaryFile("w", prefix="deepspeed_env_") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.environ["DS_ENV_FILE"] = file.name
        print(f"launch: {NOT_PASSED_ON}", file=sys.stderr, flush=True)
        yield


def _run(command: list[str], by_ssh: bool, grace: float) -> int:
    """DeepSpeed's launcher, to its end; its exit code.

    A stop signal is passed to the ranks, which save and exit, not to the launcher, which would end at once and leave
    them running. After `grace` seconds, or at a second Ctrl-C, all processes started here are killed.

    Raises:
        Signalled: before there were ranks, or where they are on other hosts, which the launcher then tells to end.
    """
    process = None
    try:
        process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C does not reach it: we pass signals on
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
    """The child processes that the main thread of `process` has started."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def deepspeed_arguments(plan: Plan, options: argparse.Namespace) -> list[str]:
    """The arguments of the command `deepspeed`.

    Raises:
        UserError: several hosts and no hostfile; one that is missing, malformed or too short; no such node rank.
    """
    arguments = []
    if plan.nodes > 1:
        arguments += _hosts(plan, options)
    elif options.hostfile is not None:
        raise UserError("--hostfile is for many hosts; say --nodes N as well")
    arguments += [f"--num_gpus={plan.ranks_per_node}", f"--master_port={options.master_port}", "--no_local_rank"]
    words = [remote_word(word) for word in plan.training] if _by_ssh(plan, options) else plan.training
    return [*arguments, "--module", *words]


def remote_word(word: str) -> str:
    """A word of a command, quoted for DeepSpeed's launcher so that the shell on the other host reads it unchanged.

    The launcher puts double quotes around a word with a space, and a backslash before those inside, but does no more.
    """
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


def _by_ssh(plan: Plan, options: argparse.Namespace) -> bool:
    return plan.nodes > 1 and options.node_rank is None


def _hosts(plan: Plan, options: argparse.Namespace) -> list[str]:
    if options.hostfile is None:
        raise UserError(f"--nodes {plan.nodes} needs --hostfile FILE with a line 'HOST slots=N' for each host")
    try:
        lines = Path(options.hostfile).read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"--hostfile {options.hostfile} cannot be read: {error.strerror}") from None
    names: list[str] = []
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        if re.match(r"\S+\s+slots=\d", line) is None:
            raise UserError(f"--hostfile {options.hostfile} has the line {line!r:.80}, which is not 'HOST slots=N'")
        if (name := line.split()[0]) in names:
            raise UserError(f"--hostfile {options.hostfile} lists {name} twice; give each host one line")
        names.append(name)
    if len(names) < plan.nodes:
        raise UserError(f"--hostfile {options.hostfile} lists {len(names)} hosts, fewer than --nodes {plan.nodes}")
    arguments = [f"--hostfile={options.hostfile}", f"--num_nodes={plan.nodes}"]
    arguments += [f"--master_addr={options.master_addr or names[0]}"]
    if options.node_rank is not None:
        if not 0 <= options.node_rank < plan.nodes:
            raise UserError(
                f"--node-rank {options.node_rank} is no host of --nodes {plan.nodes}: from 0 to {plan.nodes - 1}"
            )
        arguments += ["--no_ssh", f"--node_rank={options.node_rank}"]
    return arguments


LAUNCHER = Launcher("DeepSpeed's launcher, on this host or on those of a hostfile", add_options, start)
