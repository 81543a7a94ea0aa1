"""The test split: predictions from all ranks, and RUN/evaluation, which rank 0 writes from them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import data_quality
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.summary import describe
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import stratified_split
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation.inference import predict
from vgg_ddp.run import checkpoint
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import replace_file
from vgg_ddp.training import parts

CALIBRATION_IMAGES = 10_000  # at most, to fit one temperature on


def evaluate(config: Config, dataset: Dataset, run: RunDirectory, folder: Path, world: World) -> dict[str, Any] | None:
    """Evaluate the checkpoint in `folder` and write RUN/evaluation. All ranks together.

    Returns:
        What RUN/evaluation/summary.json says, on rank 0; None elsewhere.

    Raises:
        UserError: a checkpoint that is damaged or of another network, or a disk that cannot be written.
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
    if predictions is None:
        return None
    summary = {
        "dataset": dataset.name,
        "split": "test",
        **describe(predictions, dataset.classes, dataset.record.groups, validation, reason),
        "data": data_quality.describe(dataset),
        "network": config.network,
        "checkpoint_sha256": hashlib.sha256(contents["manifest.json"]).hexdigest(),
        "world_size": world.size,
    }
    write(run, summary, predictions)
    return summary


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


def write(run: RunDirectory, summary: dict[str, Any], predictions: Predictions) -> None:
    """Write RUN/evaluation: summary.json, and the predictions that it was computed from."""
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
