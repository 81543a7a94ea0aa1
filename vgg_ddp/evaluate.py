"""Evaluates a checkpoint on the test split: predictions from all ranks, analysis and report on rank 0.

Start it with `vgg-ddp evaluate`, or `torchrun ... -m vgg_ddp.evaluate`.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np

from vgg_ddp import builders, checkpoint, precision, rank_process, run_directory
from vgg_ddp.checkpoint import State
from vgg_ddp.config import Config, load
from vgg_ddp.console import say, table
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.distributed import World
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import predict
from vgg_ddp.files import replace_file
from vgg_ddp.metrics import Predictions, summarize
from vgg_ddp.report import write_report
from vgg_ddp.run_directory import RunDirectory
from vgg_ddp.trackers.follow import followed


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
        network = builders.build_network(config, len(dataset.classes), world.device)
        builders.load_weights(network, contents, folder)
        loader = builders.evaluation_loader(config, dataset, "test", world)
    preprocess = builders.build_preprocess(config, dataset, world.device)
    images = np.arange(len(dataset.split("test")))
    predictions = predict(network, preprocess, loader, images, config, world)
    if predictions is not None:
        sha256 = hashlib.sha256(contents["manifest.json"]).hexdigest()
        write(predictions, config, dataset, run, sha256, world.size)


def write(
    predictions: Predictions,
    config: Config,
    dataset: Dataset,
    run: RunDirectory,
    checkpoint_sha256: str,
    world_size: int,
) -> None:
    """Write the analysis and the report of the test split's predictions, and print the table."""
    summary = {
        "dataset": dataset.name,
        "split": "test",
        **summarize(predictions, dataset.classes),
        "groups": dataset.record.groups,
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
        split = dataset.split("test")
        report = write_report(run.path, lambda samples: [split.decode(sample) for sample in samples])
    show(summary)
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
            run, folder = run_directory.find(Path(arguments[0]))
            config = load(run.config, arguments[1:])
            folder = folder or chosen_checkpoint(config, run)
        world.use_threads(config.threads)
        precision.set_arithmetic(config)
        dataset, _ = builders.open_dataset(config, world)
        with followed(config, run, dataset.directory, State(), world):
            evaluate(config, dataset, run, folder, world)

    return rank_process.run(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
