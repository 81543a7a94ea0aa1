"""Everything about a run that can be checked before a rank starts, checked once.

The command that starts ranks (`vgg-ddp train`, `vgg-ddp evaluate`) checks, and hands each rank the resolved configuration.
Where ranks are started by others (torchrun, DeepSpeed's launcher), rank 0 checks and sends the others what it found.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vgg_ddp.config import Config, load
from vgg_ddp.errors import UserError
from vgg_ddp.run.resolved import ResolvedRun

if TYPE_CHECKING:
    from vgg_ddp.distributed.world import World


def check_training(config_path: str, overrides: Sequence[str]) -> ResolvedRun:
    """Read a configuration and check all of it; prepares the data set where it is not there yet.

    Raises:
        UserError: what was asked for cannot be had here, or does not fit.
    """
    config = load(config_path, list(overrides))
    if any(override.startswith("batch=") for override in overrides):
        config = msgspec.structs.replace(config, min_steps_per_epoch=0)  # the batch that was asked for stays
    if config.nproc != "auto":
        config.local_batch(config.nproc)
    _check_installed(config)
    if config.resume == "never":
        from vgg_ddp.run.directory import RunDirectory

        RunDirectory(config.run.dir).must_be_new()
    return _check(config, config.run.dir)


def check_evaluation(target: str, overrides: Sequence[str], images: Path | None = None) -> ResolvedRun:
    """The same for a run or a checkpoint that is to be evaluated, with the configuration of its run.

    Args:
        images: a folder of images to answer for.

    Raises:
        UserError: there is no such run, checkpoint or image, or the run's data set cannot be had.
    """
    from vgg_ddp.evaluation.image_files import find_images
    from vgg_ddp.run.directory import chosen_checkpoint, find_run

    if images is not None:
        find_images(images)
    run, folder = find_run(Path(target))
    config = load(run.config, list(overrides))
    folder = folder or chosen_checkpoint(run, config.evaluate.checkpoint)
    return _check(config, str(run.path), str(folder), run.trained_on)


def on_ranks(arguments: list[str], world: World, check: Callable[[str, list[str]], ResolvedRun]) -> ResolvedRun:
    """What this rank is to run, the same on every rank. All ranks together.

    Args:
        arguments: of the rank's module: the launcher's resolved run, or what `check` takes: a path and overrides.
    """
    if (handed := ResolvedRun.of_argument(arguments[0])) is not None:
        return handed
    path, *overrides = (word for word in arguments if not word.startswith("--local_rank="))  # of deepspeed's launcher
    with world.together():
        found = msgspec.json.encode(check(path, overrides)) if world.is_main else b""
    resolved = msgspec.json.decode(world.broadcast(found), type=ResolvedRun)
    with world.together():  # hosts that do not share a disk prepare the data set each for itself
        if world.local_rank == 0 and not world.is_main:
            from vgg_ddp.data.ensure import ensure

            ensure(resolved.config.data, lambda text: None)
    return resolved


def prepare_data(config: Config) -> tuple[Path, list[str]]:
    """The folder of the prepared data set, prepared now where it is not there yet, and the fallbacks taken, which are shown.

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    from vgg_ddp.data.ensure import ensure
    from vgg_ddp.run.console import box, say

    directory, fallbacks = ensure(config.data, say)
    if fallbacks:
        box("Other data than asked for", "\n".join(fallbacks))
    return directory, fallbacks


def _check_installed(config: Config) -> None:
    if config.loader == "dali" and not (importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")):
        raise UserError("loader=dali needs NVIDIA DALI; pip install 'vgg_ddp[dali]', or use loader=torch")
    if config.engine == "deepspeed":
        from vgg_ddp.config import deepspeed_file

        deepspeed_file.read(config)


def _check(config: Config, run: str, checkpoint: str = "", trained: Path | None = None) -> ResolvedRun:
    """`trained`: of an evaluation, the record of the data set that the network was trained on."""
    from vgg_ddp.trackers import wanted

    trackers = wanted(config.tracking)

    from vgg_ddp.data.dataset import Dataset, listed, read_record
    from vgg_ddp.data.settling import settle

    directory, fallbacks = prepare_data(config)
    dataset = Dataset(directory, None if trained is None else read_record(trained))
    config, choices = settle(config, dataset)
    counts = dataset.record.splits["test"].class_counts
    if trained is not None and 0 in counts:
        lacking = listed([name for name, count in zip(dataset.classes, counts) if not count])
        there = sum(count > 0 for count in counts)
        choices.append(
            f"{dataset.name} has test images of {there} of the network's {len(counts)} classes, none of {lacking}"
        )
    return ResolvedRun(
        config=config,
        run=run,
        checkpoint=checkpoint,
        dataset=str(directory),
        trackers=trackers,
        fallbacks=fallbacks,
        choices=choices,
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
