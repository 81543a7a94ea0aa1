"""Slurm: a batch script in which srun starts torchrun once on each node.

Before its time limit, and when it is preempted, the job is asked to save; it then ends with exit code 75, is queued again,
and goes on from that checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from vgg_ddp.config import Config
from vgg_ddp.errors import EXIT_STOPPED, UserError

from .launcher import Launcher
from .plan import Plan, count, ranks_there

SCRIPT = """\
#!/bin/bash
# {arithmetic}
{directives}

# The first node of the job serves the rendezvous, at a port of the job's own.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$host" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
endpoint=$address:$((20000 + SLURM_JOB_ID % 10000))

overrides=({overrides})
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]; then overrides+=(resume=auto); fi

srun --kill-on-bad-exit=0 --open-mode=append --output={logs}/%x-%j-node%n.log \\
    ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
    {torchrun} \\
    --rdzv-endpoint "$endpoint" --rdzv-id "$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" "${{overrides[@]}}" &
step=$!
trap '' TERM USR1  # Slurm sends them to the ranks as well; this script waits for them to end
wait $step
code=$?
if [ $code -eq {stopped} ]; then  # stopped on request with a checkpoint saved
    scontrol requeue "$SLURM_JOB_ID" || true  # not where a preemption has queued it again already
fi
exit $code
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this launcher alone."""
    parser.add_argument("--name", default="vgg_ddp", help="name of the job (default vgg_ddp)")
    parser.add_argument("--partition", metavar="NAME", help="default: the cluster's")
    parser.add_argument("--time", metavar="[D-]H:M:S", help="time limit (default: the partition's)")
    parser.add_argument("--account", metavar="NAME", help="account to charge")
    parser.add_argument("--gpus-per-node", type=count, metavar="N", help="default: none requested")
    parser.add_argument("--cpus-per-node", type=int, metavar="N", help="default: `threads` cores a rank, or one")
    parser.add_argument("--memory", metavar="SIZE", help="memory of each node, e.g. 64G (default: the partition's)")
    parser.add_argument(
        "--interface", metavar="NAME", help="network interface (default: the one that leads to the first node)"
    )
    parser.add_argument(
        "--save-before",
        type=int,
        default=120,
        metavar="SECONDS",
        help="save this long before the time limit (default 120)",
    )
    parser.add_argument("--logs", default="logs", metavar="DIR", help="where each node's log goes (default logs)")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further #SBATCH option, e.g. --sbatch=--qos=high",
    )


def start(options: argparse.Namespace, config: Config) -> int:
    """Submit the job, or print its script."""
    ranks = ranks_there(options.nproc, options.gpus_per_node, config)
    plan = Plan(options.config, tuple(options.overrides), config, options.nodes, ranks)
    text = script(plan, options)
    if options.dry_run:
        print(text, end="")
        return 0
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not installed on this host; --dry-run prints the script")
    try:
        Path(options.logs).mkdir(parents=True, exist_ok=True)  # without it Slurm would end the job with no message
    except OSError as error:
        raise UserError(f"--logs {options.logs} cannot be made: {error.strerror}; choose another folder") from None
    done = subprocess.run(["sbatch"], input=text, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"sbatch refused the job: {done.stderr}")
    print(done.stdout, end="")
    return 0


def script(plan: Plan, options: argparse.Namespace) -> str:
    """The batch script."""
    torchrun = [sys.executable, "-m", __package__, "torchrun", plan.config_path, f"--nodes={plan.nodes}"]
    torchrun += [f"--nproc={plan.ranks_per_node}", f"--grace={options.save_before}"]
    torchrun += [f"--interface={options.interface}"] if options.interface else []
    return SCRIPT.format(
        arithmetic=plan.arithmetic(),
        directives="\n".join(f"#SBATCH {directive}" for directive in _directives(plan, options)),
        overrides=shlex.join(plan.overrides),
        logs=shlex.quote(options.logs),
        torchrun=shlex.join(torchrun),
        stopped=EXIT_STOPPED,
    )


def _directives(plan: Plan, options: argparse.Namespace) -> list[str]:
    chosen = {
        "partition": options.partition,
        "time": options.time,
        "account": options.account,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_node or _threads(plan),  # Slurm's own default is one for all ranks of a node
        "mem": options.memory,
    }
    return [
        f"--job-name={shlex.quote(options.name)}",
        f"--nodes={plan.nodes}",
        "--ntasks-per-node=1",
        *(f"--{name}={shlex.quote(str(value))}" for name, value in chosen.items() if value is not None),
        f"--signal=USR1@{options.save_before}",
        "--requeue",
        "--open-mode=append",
        f"--output={shlex.quote(f'{options.logs}/%x-%j.log')}",
        *options.sbatch,
    ]


def _threads(plan: Plan) -> int:
    threads = plan.config.threads
    return plan.ranks_per_node * (1 if threads == "auto" else threads)


LAUNCHER = Launcher("a job for Slurm: srun and torchrun, queued again when it is preempted", add_options, start)
