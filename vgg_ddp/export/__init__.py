"""Export: a trained network as one file that others can run, checked against the original before it is put in place."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from vgg_ddp import __version__
from vgg_ddp.analysis.budget import spread
from vgg_ddp.config import Config, load
from vgg_ddp.data import of_run
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.normalisation import normalisation
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.distributed.world import ALONE, World
from vgg_ddp.errors import UserError
from vgg_ddp.export.card import write_card
from vgg_ddp.export.formats import FORMATS, Classifier, Contents, logits
from vgg_ddp.run import checkpoint
from vgg_ddp.run.directory import chosen_checkpoint, find_run
from vgg_ddp.run.files import sync_directory
from vgg_ddp.training import loading, parts, shrunk_images

IMAGES_TO_CHECK = 1000
TOLERANCE = 1e-4  # of the largest logit, at least 1


@dataclass(frozen=True)
class Export:
    """What was exported, and how far its logits are from the original's on `images`, e.g. "1000 test images"."""

    path: Path
    card: Path
    images: str
    largest_difference: float


def export(target: Path, format_name: str, out: Path | None, overrides: list[str]) -> Export:
    """Write the network of a run or checkpoint to `out` (RUN/export/model.* by default), and RUN/model_card.md.

    Raises:
        UserError: nothing to export, or a place that cannot be written.
        RuntimeError: what was written does not answer as the original does; it is removed again.
    """
    run, folder = find_run(target)
    config = run.prepared_here(overrides)
    folder = folder or chosen_checkpoint(run, config.evaluate.checkpoint)
    files = checkpoint.read(folder)
    dataset = of_run.find(run) or of_run.held(run) if config.data.source == load(run.config).data.source else None
    dataset = dataset or Dataset(ensure(config.data, lambda text: None)[0])
    if checkpoint.state(files).identity.get("dataset") != dataset.sha256:
        raise UserError(
            f"{folder} was trained on other data than {dataset.name}; set data.source to what it was trained on"
        )
    device = torch.device("cpu")
    config = msgspec.structs.replace(config, channels_last=False, loader="torch")
    network = parts.build_network(config, len(dataset.classes), device, partial(loading.load_weights, files, folder))
    preprocess = parts.build_preprocess(config, dataset, device)
    shrunk_images.take_statistics(network, config, folder, checkpoint.state(files), ALONE)
    classifier = Classifier(preprocess, network).eval()
    form = FORMATS[format_name]
    mean, std = normalisation(config.data, dataset.record)
    contents = Contents(
        labels=dataset.classes,
        mean=mean,
        std=std,
        image_size=config.data.image_size,
        resize=config.data.shorter_side,
        network=config.network,
        batch_norm=config.model.batch_norm,
        head=config.model.head,
        variant=config.model.variant,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        checkpoint_sha256=hashlib.sha256(files["manifest.json"]).hexdigest(),
        vgg_ddp=__version__,
    )
    out = out or run.path / "export" / f"model{form.suffix}"
    if out.suffix != form.suffix:
        raise UserError(f"--out {out} must end in {form.suffix}, as a file of format {format_name} does")
    images = test_images(config, dataset)
    aside = out.with_name(f".writing-{out.name}")
    with run.writing():
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            form.write(aside, classifier, contents)
            difference = check(form.answers(aside, contents, images), logits(classifier, images))
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, out)
        finally:
            aside.unlink(missing_ok=True)
        sync_directory(out.parent)
        card = write_card(run, config, dataset, contents, out, format_name)
    kind = "test images" if dataset.has_images else "images of noise, since the data set is gone"
    return Export(out, card, f"{len(images)} {kind}", difference)


def test_images(config: Config, dataset: Dataset) -> Tensor:
    """Up to `IMAGES_TO_CHECK` images spread over the test split, as the network gets them: uint8 [n, size, size, 3].

    Noise where the data set is gone.
    """
    if not dataset.has_images:
        size = config.data.image_size
        return torch.randint(256, (IMAGES_TO_CHECK // 10, size, size, 3), dtype=torch.uint8)
    split = dataset.split("test")
    samples = spread(len(split), IMAGES_TO_CHECK)
    loader = parts.evaluation_loader(config, dataset, "test", World(0, 1, 0, 1, torch.device("cpu")))
    slices = evaluation_slices(samples, config.evaluate.batch, 0, 1)
    return torch.cat([batch.images for batch in loader.stream(slices)])


def check(found: Tensor, expected: Tensor) -> float:
    """The largest difference between two sets of logits [n, classes].

    Raises:
        RuntimeError: it is more than `TOLERANCE`, or an image gets another class.
    """
    difference = float((found - expected).abs().max())
    others = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())) or others:
        raise RuntimeError(
            f"the exported network does not answer as the original does: logits differ by up to {difference:.3g}, "
            f"{others} of {len(found)} images get another class; nothing was written"
        )
    return difference
