"""The test split: predictions from all ranks, and what rank 0 says of them in RUN/evaluation."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis import course, data_quality, dynamics
from vgg_ddp.analysis.budget import BUDGETS
from vgg_ddp.analysis.predictions import Predictions, accuracy
from vgg_ddp.analysis.summary import describe
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.validation import HeldOut
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import features, protocols
from vgg_ddp.evaluation.chosen_images import calibration_images, training_images
from vgg_ddp.evaluation.inference import predict
from vgg_ddp.evaluation.protocols import Protocol
from vgg_ddp.evaluation.stored import write_evaluation
from vgg_ddp.evaluation.why import Answered, Search
from vgg_ddp.run import checkpoint, training_answers
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import last_written, read_metrics
from vgg_ddp.training import loading, parts, shrunk_images


def evaluate(config: Config, dataset: Dataset, run: RunDirectory, folder: Path, world: World) -> dict[str, Any] | None:
    """Evaluate the checkpoint in `folder` and write RUN/evaluation. All ranks together.

    Returns:
        What RUN/evaluation/summary.json says, on rank 0; None elsewhere.

    Raises:
        UserError: a checkpoint that is damaged or of another network, answers that are not finite, or a disk that cannot be
            written.
    """
    files = world.from_main(lambda: checkpoint.pack(checkpoint.read(folder)))
    with world.together():
        contents = checkpoint.unpack(files)
        of_trained = checkpoint.state(contents).identity.get("dataset") == dataset.sha256
        if not of_trained and not dataset.as_trained:
            raise UserError(
                f"{run.path} is of an earlier version and does not name its classes, so that only the data that it was trained "
                f"on can be evaluated, and {dataset.name} is other data"
            )
        load = partial(loading.load_weights, contents, folder)
        network = parts.build_network(config, len(dataset.classes), world.device, load)
    preprocess = parts.build_preprocess(config, dataset, world.device)
    shrunk_images.take_statistics(network, config, folder, checkpoint.state(contents), world)
    protocol = Protocol.of(config)

    def answers(images: HeldOut) -> Answered | None:
        if config.evaluate.name:
            split = dataset.split(images.split)
            found = protocols.predict(protocol, network, preprocess, split, images.samples, config, world)
            return None if found is None else Answered(found, None, images.samples)
        with world.together():
            loader = parts.evaluation_loader(config, dataset, images.split, world)
        with features.kept(network, images.samples, config.evaluate.batch, world) as kept:
            found = predict(network, preprocess, loader, images.samples, config, world)
        of_all_ranks = kept.gathered()
        return None if found is None else Answered(found, of_all_ranks, kept.samples)

    tested = answers(HeldOut("test", np.arange(len(dataset.split("test")))))
    with world.together():
        if tested is not None:
            _check(tested.predictions, folder, config)
    calibrated_on, reason = calibration_images(config, dataset, checkpoint.state(contents))
    validation = answers(calibrated_on) if len(calibrated_on) else None
    seen = training_images(config, dataset, checkpoint.state(contents))
    remembered = answers(seen) if len(seen) else None
    if tested is None:
        return None
    predictions = tested.predictions
    described = describe(
        predictions,
        dataset.classes,
        config.analysis.groups or dataset.record.groups,
        None if validation is None else validation.predictions,
        reason,
        named_by="configuration" if config.analysis.groups else "data set",
    )
    world.activity.go_on()
    search = Search(config, dataset, network, preprocess, world, tested, described)
    compared = BUDGETS[config.analysis.budget].compared_pixels
    data = data_quality.describe(dataset, compared, world.activity.go_on)
    world.activity.go_on()
    metrics = last_written(read_metrics(RunDirectory(folder.parents[1]).metrics))
    summary = {
        "dataset": dataset.name,
        "split": "test",
        "protocol": protocol.describe(),
        "warnings": course.warnings(metrics, np.array(described["confusion"])),
        **described,
        "training_dynamics": _dynamics(dataset, RunDirectory(folder.parents[1])) if len(seen) else None,
        "training_images": remembered and {"images": len(seen), "accuracy": accuracy(remembered.predictions)},
        "data": data,
        "near_duplicates_accuracy": data_quality.accuracy_by_doubles(
            data["near_duplicates"], predictions.prediction == predictions.label, predictions.sample_index
        ),
        "why": search.describe(remembered),
        "network": config.network,
        "checkpoint_sha256": hashlib.sha256(contents["manifest.json"]).hexdigest(),
        "world_size": world.size,
    }
    write_evaluation(run, summary, predictions, search.arrays)
    return summary


def _dynamics(dataset: Dataset, run: RunDirectory) -> dict[str, Any] | None:
    """What the answers to the training images were in every epoch of the run; None where that is not known."""
    labels = dataset.split("train").labels
    return dynamics.describe(dynamics.dynamics(training_answers.read_epochs(run, len(labels))), labels, dataset.classes)


def _check(predictions: Predictions, folder: Path, config: Config) -> None:
    wrong = int((~np.isfinite(predictions.logits)).any(axis=1).sum())
    if wrong:
        raise UserError(
            f"the answers of {folder} to {wrong:,} of {len(predictions.label):,} images are not finite in {config.precision}: "
            "nothing can be said of them; vgg-ddp evaluate RUN precision=fp32 computes them with a wider range"
        )
