"""Everything about a run that can be checked before a rank starts, checked once.

The command that starts ranks (`vgg-ddp train`, `vgg-ddp evaluate`) checks, and hands each rank the resolved configuration.
Where ranks are started by others (torchrun, DeepSpeed's launcher), rank 0 checks and sends the others what it found.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vgg_ddp import cores
from vgg_ddp.config import Config, load
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.errors import UserError
from vgg_ddp.run.resolved import ResolvedRun

if TYPE_CHECKING:
    from vgg_ddp.data.dataset import Dataset
    from vgg_ddp.distributed.world import World

# Keys that average over several views: with --images they apply only if set on the command line.
VIEWS = ("evaluate.protocol=", "evaluate.scales=", "evaluate.flips=", "evaluate.views=")


def check_training(config_path: str, overrides: Sequence[str], ranks: int | None = None) -> ResolvedRun:
    """Read a configuration and check all of it; prepares the data set where it is not there yet.

    Args:
        ranks: that train; None: those of this host.

    Raises:
        UserError: what was asked for cannot be had here, or does not fit.
    """
    from vgg_ddp.distributed.launcher import ranks_of_this_host

    config = load(config_path, list(overrides))
    if ranks is None:
        ranks = ranks_of_this_host(config)
        Devices.of(config).check(ranks)
        if config.nproc != "auto" or not config.min_steps_per_epoch:  # which may halve the batch until it divides
            config.local_batch(ranks)
    _check_installed(config)
    _check_initial_weights(config)
    if config.resume == "never":
        from vgg_ddp.run.directory import RunDirectory

        RunDirectory(config.run.dir).must_be_new()
    return _check(config, config.run.dir, ranks=ranks)


def check_evaluation(
    target: str, overrides: Sequence[str], images: Path | None = None, out: Path | None = None
) -> ResolvedRun:
    """The same for a run or a checkpoint that is to be evaluated, with the configuration of its run.

    Args:
        images: an image, or a folder of them, to answer for.
        out: where to write; None: in the run, and there in a folder of its own for every other data set and protocol.

    Raises:
        UserError: there is no such run, checkpoint or image, the run's data set cannot be had, or nothing can be written.
    """
    from vgg_ddp.data import of_run
    from vgg_ddp.evaluation.image_files import find_images
    from vgg_ddp.run.directory import RunDirectory, chosen_checkpoint, find_run

    if images is not None:
        find_images(images)
    must_be_no_run(out)
    run, folder = find_run(Path(target))
    config = run.prepared_here(overrides)
    if images is not None and not any(word.startswith(VIEWS) for word in overrides):
        config = msgspec.structs.replace(config, evaluate=config.evaluate.once)
    folder = folder or chosen_checkpoint(run, config.evaluate.checkpoint)
    dataset = None
    if config.data.source == load(run.config).data.source:
        dataset = of_run.find(run) if images is None else of_run.held(run)
    RunDirectory(out or run.path).must_be_writable()
    resolved = _check(config, str(run.path), str(folder), dataset, run.data)
    if out is None and images is None:
        other = "" if of_run.is_of(run, resolved.dataset) else Path(resolved.dataset).resolve().name
        name = "-".join(word for word in (other, config.evaluate.name) if word)
        out = run.evaluations / name if name else None
    return msgspec.structs.replace(resolved, out=str(out or ""), trackers={} if out else resolved.trackers)


def must_be_no_run(out: Path | None) -> None:
    """Raises a `UserError` where the folder for an evaluation holds a run or a study, whose own it would replace."""
    if out is not None and any(os.path.isfile(out / name) for name in ("config.yaml", "definition.yaml")):
        raise UserError(f"--out {out} holds a run or a study; choose another folder")


def devices(arguments: list[str], read: Callable[[str, list[str]], Config]) -> Devices:
    """The devices that a rank's arguments ask for, which it must know before it joins the others.

    The defaults where the arguments cannot be read: `on_ranks` reports the error, once for all ranks.

    Args:
        arguments, read: as in `on_ranks`, but `read` only reads the configuration.
    """
    if (handed := _handed(arguments)) is not None:
        return Devices.of(handed.config)
    try:
        return Devices.of(read(*_path_and_overrides(arguments)))
    except UserError:
        return Devices()


def on_ranks(arguments: list[str], world: World, check: Callable[[str, list[str]], ResolvedRun]) -> ResolvedRun:
    """What this rank is to run, the same on every rank. All ranks together.

    Args:
        arguments: of the rank's module: the launcher's resolved run, or what `check` takes: a path and overrides.
    """
    if (handed := _handed(arguments)) is not None:
        return handed
    found = world.from_main(lambda: msgspec.json.encode(check(*_path_and_overrides(arguments))))
    resolved = msgspec.json.decode(found, type=ResolvedRun)
    with world.together():  # hosts that do not share a disk prepare the data set each for itself
        if world.local_rank == 0 and not world.is_main:
            from vgg_ddp.data.ensure import ensure_at

            ensure_at(Path(resolved.dataset), resolved.config.data, bool(resolved.fallbacks), lambda text: None)
    return resolved


def must_be_the_same_data(dataset: Dataset, world: World) -> None:
    """Raises a `UserError` on every rank if the data of any host differ from rank 0's. All ranks together."""
    first, sha256 = world.broadcast(f"{socket.gethostname()} {dataset.sha256}".encode()).decode().split()
    with world.together():
        if dataset.sha256 != sha256:
            raise UserError(
                f"{dataset.directory} on {socket.gethostname()} (rank {world.rank}) has other data than on {first} (rank 0): "
                f"their hashes differ; copy the folder from {first}, or remove it here and prepare it from the same files with "
                "the same versions"
            )


def _handed(arguments: list[str]) -> ResolvedRun | None:
    return ResolvedRun.of_argument(arguments[0]) if arguments else None


def _path_and_overrides(arguments: list[str]) -> tuple[str, list[str]]:
    words = [word for word in arguments if not word.startswith("--local_rank=")]  # of deepspeed's launcher
    if not words:
        raise UserError(
            "no CONFIG (or RUN, to evaluate) is given; add one after the module, e.g. configs/quickstart.yaml"
        )
    return words[0], words[1:]


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
    if config.loader == "dali":
        from vgg_ddp.data import nvidia_dali

        nvidia_dali.require(on_gpu=config.device == "cuda")  # with "auto" the ranks find out
    if config.engine == "deepspeed":
        from vgg_ddp.config import deepspeed_file

        deepspeed_file.read(config)


def _check_initial_weights(config: Config) -> None:
    """Check that the initial weights exist; a run that continues from a checkpoint does not need them again."""
    from vgg_ddp.run.directory import RunDirectory
    from vgg_ddp.run.files import EXCHANGING
    from vgg_ddp.run.trained_weights import find_weights

    name, checkpoints = config.model.initialize_from, RunDirectory(config.run.dir).checkpoints
    there = [*checkpoints.glob("step-*"), *checkpoints.glob(f"{EXCHANGING}step-*")]
    if name is not None and (config.resume == "never" or not there):
        find_weights(name)


def _check(
    config: Config,
    run: str,
    checkpoint: str = "",
    dataset: Dataset | None = None,
    trained: Path | None = None,
    ranks: int = 1,
) -> ResolvedRun:
    """`trained`: in an evaluation, the path of the record of the data set that the network was trained on."""
    from vgg_ddp.trackers import wanted

    trackers = wanted(config.tracking)

    from vgg_ddp.data.dataset import Dataset
    from vgg_ddp.data.other_classes import listed
    from vgg_ddp.data.record import read_record
    from vgg_ddp.data.settling import check_test_images, check_train_sizes, settle
    from vgg_ddp.data.validation import check_validation
    from vgg_ddp.evaluation import attributes
    from vgg_ddp.run.directory import RunDirectory

    fallbacks: list[str] = []
    if dataset is None:
        directory, fallbacks = prepare_data(config)
        dataset = Dataset(directory, None if trained is None else read_record(trained))
    earlier = RunDirectory(run).config
    continued = load(earlier).batch if trained is None and config.resume != "never" and earlier.is_file() else None
    config, choices = settle(config, dataset, ranks, continued) if dataset.has_images else (config, [])
    if trained is None:
        check_validation(config, dataset)
        check_train_sizes(config.data)
        check_test_images(config, dataset)  # now, not after hours of training
    if dataset.has_images:
        attributes.check(config.analysis, dataset)
    counts = dataset.record.splits["test"].class_counts
    if trained is not None and dataset.has_images and 0 in counts:
        lacking = listed([name for name, count in zip(dataset.classes, counts) if not count])
        there = sum(count > 0 for count in counts)
        choices = [
            *choices,
            f"{dataset.name} has test images of {there} of the network's {len(counts)} classes, none of {lacking}",
        ]
    usable, there = cores.usable(), len(os.sched_getaffinity(0))
    if usable < there:
        choices = [*choices, f"cores: {usable} of {there}, as many as the CPU quota of this control group allows"]
    if config.threads == "auto" and (threads := cores.openmp_threads()) is not None:
        config = msgspec.structs.replace(config, threads=threads)
        choices = [*choices, f"threads: {threads}, as OMP_NUM_THREADS says"]
    return ResolvedRun(
        config=config,
        run=run,
        checkpoint=checkpoint,
        dataset=str(dataset.directory),
        trackers=trackers,
        fallbacks=fallbacks,
        choices=choices,
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
