"""Kubernetes: a TrainJob for the Kubeflow trainer (version 2, trainer.kubeflow.org/v1alpha1).

The trainer's torch runtime passes each pod its node rank and the address of the first pod in torchrun's own environment
variables (PET_*), so the torchrun command needs no arguments for them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from typing import Any

import yaml

from vgg_ddp.config import Config
from vgg_ddp.errors import UserError

from .launcher import Launcher
from .plan import Plan, count, interface_variables, ranks_there


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this launcher alone."""
    parser.add_argument("--image", required=True, help="image with this package, and CONFIG in its working directory")
    parser.add_argument("--name", default="vgg-ddp", help="name of the job (default vgg-ddp)")
    parser.add_argument("--namespace", default="default", help="namespace of the job (default: default)")
    parser.add_argument("--runtime", default="torch-distributed", help="training runtime (default torch-distributed)")
    parser.add_argument("--gpus-per-node", type=count, metavar="N", help="default: none asked for")
    parser.add_argument("--cpus-per-node", metavar="N", help="default: the runtime's")
    parser.add_argument("--memory", metavar="SIZE", help="of each node, e.g. 64Gi (default: the runtime's)")
    parser.add_argument("--interface", metavar="NAME", help="network interface (default: found by the ranks)")
    parser.add_argument("--apply", action="store_true", help="create it by kubectl (default: print it)")


def start(options: argparse.Namespace, config: Config) -> int:
    """Print the manifest, or hand it to kubectl."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", options.name):
        raise UserError(
            f"--name {options.name} is not a name in Kubernetes: use small letters, digits and dashes, a letter first"
        )
    ranks = ranks_there(options.nproc, options.gpus_per_node, config)
    plan = Plan(options.config, tuple(options.overrides), config, options.nodes, ranks)
    text = f"# {plan.arithmetic()}\n" + yaml.safe_dump(manifest(plan, options), sort_keys=False, width=120)
    if options.dry_run or not options.apply:
        print(text, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not installed; leave out --apply to print the manifest")
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


def manifest(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """The TrainJob as a dictionary, ready for YAML."""
    resources = {
        "cpu": options.cpus_per_node,
        "memory": options.memory,
        "nvidia.com/gpu": None if options.gpus_per_node is None else str(options.gpus_per_node),
    }
    asked = {name: amount for name, amount in resources.items() if amount is not None}
    # A pod that is evicted or moved starts again by the same command.
    resume = [] if any(override.startswith("resume=") for override in plan.overrides) else ["resume=auto"]
    threads = {"OMP_NUM_THREADS": str(plan.config.threads)} if plan.config.threads != "auto" else {}
    variables = {**threads, **interface_variables(options.interface)}
    trainer = {
        "image": options.image,
        "command": ["torchrun", "-m"],
        "args": [*plan.training, *resume],
        "numNodes": plan.nodes,
        "numProcPerNode": plan.ranks_per_node,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resourcesPerNode": {"requests": dict(asked), "limits": dict(asked)} if asked else {},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": options.runtime,
            },
            "trainer": {key: value for key, value in trainer.items() if value not in ([], {})},
            "runtimePatches": [{"manager": "vgg-ddp", "trainingRuntimeSpec": _shared_memory()}],
        },
    }


def _shared_memory() -> dict[str, Any]:
    """A patch that gives each node's pod /dev/shm of the size of its memory.

    Kubernetes gives 64 MiB, in which neither NCCL's ranks of one host nor a DataLoader's workers have room. "node" is what
    the trainer's own runtimes call the job and the container.
    """
    pod = {
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}]}],
    }
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


LAUNCHER = Launcher("a TrainJob for the Kubeflow trainer on Kubernetes", add_options, start)
