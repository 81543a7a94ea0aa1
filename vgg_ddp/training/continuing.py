"""A continued run: which keys it changes, and that nothing is trained or rewritten if no step is left to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import torch

from vgg_ddp.config import Config, flat, load, with_absolute_paths
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.distributed.world import World
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory, chosen_checkpoint, manifest_sha256
from vgg_ddp.run.files import read_json
from vgg_ddp.training.job import Job

NO_SETTINGS = (
    "resume",
    "restarts",
    "timeout",
    "run.dir",
    "data.source",
    "data.directory",
)  # not settings of the training; data are identified by their hash


def changes(run: RunDirectory, config: Config) -> list[str]:
    """The keys in which `config` differs from what the run was trained with last, each with both values."""
    before = flat(load(run.config))
    return [
        f"{key}={json.dumps(value)} (before: {json.dumps(before[key])})"
        for key, value in flat(with_absolute_paths(config)).items()
        if key not in NO_SETTINGS
        and value != before[key]
        and not (value == "balanced" and isinstance(before[key], list))
    ]


def changes_so_far(job: Job, state: State) -> list[str]:
    """The changes of every continuation, including this one, each with the step from which it applies."""
    before = read_json(job.run.environment) or {}
    if not state.step:
        return []
    found, threads = changes(job.run, job.config), before.get("host", {}).get("threads")
    if threads not in (None, torch.get_num_threads()):
        found.append(
            f"threads of rank 0: {torch.get_num_threads()} (before: {threads}); sums of more threads round otherwise"
        )
    return [*before.get("changes", []), *(f"from step {state.step}: {change}" for change in found)]


def as_trained(job: Job, state: State) -> Config | None:
    """The configuration that a finished run was trained with; None if the run has been evaluated as well.

    Prints that nothing is trained, and which overrides have no effect. All ranks together.
    """

    def found() -> bytes:
        ignored = changes(job.run, job.config)
        what = f"; without effect: {', '.join(ignored)}" if ignored else ""
        say(f"{job.run.path} is trained to its end, {state.step} steps: nothing is trained or rewritten{what}")
        config = load(job.run.config)
        return msgspec.json.encode(None if _is_evaluated(job.run, config) else config)

    return msgspec.json.decode(job.world.from_main(found), type=Config | None)


def to_evaluate(run: RunDirectory, config: Config, world: World) -> Path:
    """The folder of the checkpoint that the evaluation after a training takes, which may lie on rank 0's host alone.

    Raises:
        UserError: the run has none.
    """
    return Path(world.from_main(lambda: str(chosen_checkpoint(run, config.evaluate.checkpoint)).encode()).decode())


def _is_evaluated(run: RunDirectory, config: Config) -> bool:
    """Whether the evaluation of the chosen checkpoint and its report are there, and those of another protocol if asked for."""
    chosen = manifest_sha256(chosen_checkpoint(run, config.evaluate.checkpoint))
    places = [run, *([RunDirectory(run.evaluations / config.evaluate.name)] if config.evaluate.name else [])]
    evaluated = [(read_json(place.evaluation / "summary.json") or {}).get("checkpoint_sha256") for place in places]
    return chosen is not None and all(place.report.is_file() for place in places) and {*evaluated} == {chosen}


# The part of the identity that may change between epochs: it only affects the order of images within one.
OF_AN_EPOCH = ("data.balance_classes",)


def identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What two trainings must share for one to continue the other: network, data, order, optimizer."""
    return {
        "network": config.network,
        "model.batch_norm": config.model.batch_norm,
        "model.head": config.model.head,
        "data.image_size": config.data.image_size,
        "data.validation": config.data.validation,
        "data.train_share": config.data.train_share,
        "data.split_seed": config.data.split_seed if config.data.train_share < 1 else 0,  # else in the data set's hash
        "data.normalisation": "imagenet" if config.data.normalisation == "imagenet" else "data",
        "dataset": dataset.sha256,
        "data.balance_classes": config.data.balance_classes,
        "seed": config.seed,
        "batch": config.batch,
        "optimizer.name": config.optimizer.name,
        **{f"model.{name}": value for name, value in config.model.variant.items()},
        "model.norm_scale": config.model.norm_scale,
        "model.whiten": config.model.whiten,
        "optimizer.features_rate": "above 0" if config.optimizer.features_rate else "0",
        "ema": config.ema,
    }
