"""What a run ran on (RUN/environment.json: versions, devices, code, command), and what it came to (RUN/summary.json)."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import vgg_ddp
from vgg_ddp import cores
from vgg_ddp.config import Config
from vgg_ddp.data import nvidia_dali
from vgg_ddp.distributed.devices import device_names
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.resolved import ResolvedRun
from vgg_ddp.training.job import Job

PACKAGES = (
    "torch",
    "torchvision",
    *nvidia_dali.PACKAGES,
    "numpy",
    "pillow",
    "safetensors",
    "deepspeed",
    "wandb",
)


GPU_FACTS = ("name", "driver_version", "pci.bus_id", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit")


def describe(job: Job, resolved: ResolvedRun, precision_reason: str, changes: list[str]) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        resolved: what was checked before the ranks started.
        precision_reason: why the precision is what it is; "" where it was asked for.
        changes: what continuations of the run have changed of its configuration.
    """
    versions = {"vgg_ddp": vgg_ddp.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": {**versions, **cuda_versions()},
        "devices": device_names(job.world.device),
        "gpus": gpus(),
        "host": {
            "system": platform.platform(),
            "cores": cores.usable(),
            "threads": torch.get_num_threads(),
            "loading": job.world.cores_for_loading(),
        },
        "commit": commit(),
        "command": resolved.command,
        "world_size": job.world.size,
        "restarts": job.world.restarts,
        "engine": engine(job.config),
        "precision": f"{job.config.precision}: {precision_reason or 'asked for'}",
        "fallbacks": [*resolved.fallbacks, *_fallbacks(job)],
        "choices": resolved.choices,
        "changes": changes,
        "measured": job.engine.measured,
        "initial_weights": job.initial.record,
        "data": job.data.dataset.name,
        "data_sha256": job.data.dataset.sha256,
        "data_directory": str(job.data.dataset.directory.resolve()),
        "loader": f"{job.data.loader.name}: {job.data.loader.reason}",
    }


def summary(job: Job, state: State, peak_memory_bytes: int) -> dict[str, object]:
    """RUN/summary.json. Seconds include validation and saving; goodput is the share of them spent in steps.

    They do not include "build_seconds", which are those of the last start.
    """
    images = state.step * job.config.batch
    return {
        "build_seconds": job.build_seconds,
        "train_seconds": state.seconds,
        "images_per_second": images / state.step_seconds,
        "data_wait_share": state.wait_seconds / state.step_seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "steps": state.step,
        "epochs": state.step / job.data.order.steps_per_epoch,
        "goodput": state.step_seconds / state.seconds,
        "best_validation_accuracy": state.best_accuracy if state.best_accuracy >= 0 else None,
        "best_validation_epoch": state.best_epoch if state.best_accuracy >= 0 else None,
        "world_size": job.world.size,
        "restarts": job.world.restarts,
        "loader": job.data.loader.name,
    }


def _fallbacks(job: Job) -> list[str]:
    found = list(job.data.fallbacks)
    if job.world.device.type == "cpu" and job.config.device == "auto":
        found.append("no GPU: trained on the CPU")
    for name, problem in job.engine.measured.get("compile", {}).get("problems", {}).items():
        found.append(f"torch.compile failed ({name}: {problem})")
    return found


def choices(job: Job) -> list[str]:
    """A line for each: initial weights, choices made by measuring (with what was measured), and keys without effect."""
    measured = [f"{key}: {found['chosen']}, by trial ({_tried(found)})" for key, found in job.engine.measured.items()]
    return [*job.initial.choices, *measured, *_too_late(job)]


def _too_late(job: Job) -> list[str]:
    """The keys that ask for something from an epoch on that the training does not reach."""
    strong, schedule = job.config.augment.strong_epochs, job.config.schedule
    epochs: dict[str, Sequence[float]] = {
        "augment.strong_epochs": [] if strong is None else strong[:1],
        "schedule.milestones": schedule.milestones if schedule.name == "step" else [],
    }
    end = job.total_steps / job.data.order.steps_per_epoch
    short = schedule.warmup_epochs >= end
    return [
        f"{key}: epoch {epoch:g} has no effect, the training has {end:g} epochs"
        for key, begins in epochs.items()
        for epoch in begins
        if epoch >= end
    ] + ([f"schedule.warmup_epochs={schedule.warmup_epochs:g}: the training ends within the warm-up"] if short else [])


def _tried(found: dict[str, Any]) -> str:
    if "bytes" in found:
        sizes = ", ".join(f"{images} images {size / 1e9:.2f} GB" for images, size in found["bytes"].items())
        return f"{sizes}; {found['limit_bytes'] / 1e9:.2f} GB available"
    seconds = found["seconds"].items()
    return ", ".join(f"{name} failed" if value is None else f"{name} {value:.3g} s" for name, value in seconds)


def sentence(job: Job) -> str:
    """What is about to run, in one line."""
    config, world, data = job.config, job.world, job.data
    threads = torch.get_num_threads()
    held_out = f", {len(data.validation)} held out for validation" if len(data.validation) else ""
    return (
        f"{config.network} on {data.dataset.name}: {len(data.order.samples)} images{held_out}; batch {config.batch} on "
        f"{world.size} x {device_names(world.device)[0]}, {threads} CPU thread{'s' * (threads > 1)} each; {config.precision}; "
        f"{engine(config)}; loader {data.loader.name} ({data.loader.reason}); {job.total_steps} steps"
    )


def engine(config: Config) -> str:
    """The engine, and what of it decides how it splits the work."""
    return f"deepspeed, ZeRO stage {config.deepspeed.stage}" if config.engine == "deepspeed" else config.engine


def cuda_versions() -> dict[str, str]:
    """The versions of torch's CUDA libraries and of the CUDA that the driver supports; none if torch has no CUDA."""
    if torch.version.cuda is None:
        return {}
    driver = nvidia_dali.driver_cuda()
    return {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        **({"cuda_driver": ".".join(map(str, driver))} if driver else {}),
    }


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi tells of each GPU here; nothing where there is none."""
    query = [f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(GPU_FACTS, line.split(", "))) for line in told.splitlines()]


def commit() -> str | None:
    """The commit of the code, marked where files were changed since; None outside of a checkout."""
    root = Path(vgg_ddp.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("-changed" if changed.stdout.strip() else "")
