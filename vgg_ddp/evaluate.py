"""Evaluates a checkpoint on the test split: predictions from all ranks, analysis and report on rank 0.

Start it with `vgg-ddp evaluate`, or `torchrun ... -m vgg_ddp.evaluate`.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import data_quality
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.summary import describe
from vgg_ddp.config import Config, load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import stratified_split
from vgg_ddp.distributed import rank_process
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation.inference import predict
from vgg_ddp.optim import precision
from vgg_ddp.report import write_report
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say, table
from vgg_ddp.run.directory import RunDirectory, find_run
from vgg_ddp.run.files import replace_file
from vgg_ddp.trackers import wanted
from vgg_ddp.trackers.follow import followed
from vgg_ddp.training import parts

CALIBRATION_IMAGES = 10_000  # at most, to fit one temperature on


def evaluate(config: Config, dataset: Dataset, run: RunDirectory, folder: Path, world: World) -> None:
    """Evaluate the checkpoint in `folder` and write RUN/evaluation and RUN/report. All ranks together.

    Raises:
        UserError: a checkpoint that is damaged or of another network.
    """
    with world.together():
        files = checkpoint.pack(checkpoint.read(folder)) if world.is_main else b""
    files = world.broadcast(files)
    with world.together():
        contents = checkpoint.unpack(files)
        network = parts.build_network(config, len(dataset.classes), world.device)
        parts.load_weights(network, contents, folder)
        loader = parts.evaluation_loader(config, dataset, "test", world)
    preprocess = parts.build_preprocess(config, dataset, world.device)
    images = np.arange(len(dataset.split("test")))
    predictions = predict(network, preprocess, loader, images, config, world)
    held_out, reason = held_out_images(config, dataset, checkpoint.state(contents))
    validation = None
    if len(held_out):
        with world.together():
            loader = parts.evaluation_loader(config, dataset, "train", world)
        validation = predict(network, preprocess, loader, held_out, config, world)
    if predictions is not None:
        sha256 = hashlib.sha256(contents["manifest.json"]).hexdigest()
        write(predictions, validation, reason, config, dataset, run, sha256, world.size)


def held_out_images(config: Config, dataset: Dataset, state: checkpoint.State) -> tuple[NDArray[np.int64], str]:
    """Images of the train split that the checkpoint was not trained on, at most `CALIBRATION_IMAGES`, and which they are;
    or none, and why.
    """
    none = np.empty(0, dtype=np.int64)
    now = parts.identity(config, dataset)
    if any(state.identity.get(key) != now[key] for key in ("dataset", "data.validation", "seed")):
        return none, "the checkpoint was trained on other data, or held out other images for validation"
    _, held_out = stratified_split(dataset.split("train").labels, config.data.validation, config.seed)
    if len(held_out) == 0:
        return none, "the run held out no images for validation"
    held_out = held_out[:: -(-len(held_out) // CALIBRATION_IMAGES)]
    return held_out, f"{len(held_out):,} images held out for validation"


def write(
    predictions: Predictions,
    validation: Predictions | None,
    validation_reason: str,
    config: Config,
    dataset: Dataset,
    run: RunDirectory,
    checkpoint_sha256: str,
    world_size: int,
) -> None:
    """Write the analysis and the report of the test split's predictions, and print the table and how long it took."""
    start = time.perf_counter()
    summary = {
        "dataset": dataset.name,
        "split": "test",
        **describe(predictions, dataset.classes, dataset.record.groups, validation, validation_reason),
        "data": data_quality.describe(dataset),
        "network": config.network,
        "checkpoint_sha256": checkpoint_sha256,
        "world_size": world_size,
    }
    arrays = io.BytesIO()
    np.savez(
        arrays,
        label=predictions.label,
        prediction=predictions.prediction,
        probabilities=predictions.probabilities,
        sample_index=predictions.sample_index,
    )
    with run.writing():
        run.write_json(run.evaluation / "summary.json", summary)
        replace_file(run.evaluation / "predictions.npz", arrays.getvalue())
        report = write_report(run.path, dataset)
    show(summary)
    say(f"analysis and report took {time.perf_counter() - start:.1f} s")
    say(f"report: {report}")


def show(summary: dict) -> None:  # type: ignore[type-arg]
    """Print accuracy per class, worst last, and over all."""
    ranked = sorted(summary["per_class"], key=lambda c: -1 if c["accuracy"] is None else -c["accuracy"])
    shown = ranked if len(ranked) <= 20 else [*ranked[:10], *ranked[-10:]]
    rows = [[c["name"], f"{c['images']}", "-" if c["accuracy"] is None else f"{c['accuracy']:.1%}"] for c in shown]
    table(f"{summary['network']} on the test images of {summary['dataset']}", ["class", "images", "accuracy"], rows)
    top5 = "" if summary["top5_accuracy"] is None else f", top-5 {summary['top5_accuracy']:.2%}"
    say(f"test accuracy {summary['accuracy']:.2%}{top5}, loss {summary['loss']:.3f}, {summary['images']} images")


def chosen_checkpoint(config: Config, run: RunDirectory) -> Path:
    """The checkpoint that `evaluate.checkpoint` ("last" or "best") means.

    Raises:
        UserError: the run has none.
    """
    pointer = run.checkpoints / {"last": "latest", "best": "best"}[config.evaluate.checkpoint]
    try:
        return run.checkpoints / pointer.read_text()
    except OSError:
        raise UserError(
            f"{run.path} has no {config.evaluate.checkpoint} checkpoint; train first: vgg-ddp train CONFIG"
        ) from None


def main(arguments: list[str]) -> int:
    """One rank of an evaluation: `RUN|CHECKPOINT [key=value ...]`; returns the exit code."""

    def body(world: World) -> None:
        with world.together():
            run, folder = find_run(Path(arguments[0]))
            config = load(run.config, arguments[1:])
            folder = folder or chosen_checkpoint(config, run)
        world.use_threads(config.threads)
        config, _ = precision.resolve(config, world.device)
        precision.set_arithmetic(config)
        dataset, _ = parts.open_dataset(config, world)
        with world.together():
            trackers = wanted(config.tracking) if world.is_main else {}
        with followed(config, run, dataset.directory, State(), trackers):
            evaluate(config, dataset, run, folder, world)

    return rank_process.run(body)


if __name__ == "__main__":
    rank_process.leave(main(sys.argv[1:]))
