"""What a script needs of vgg_ddp, under names that stay: `import vgg_ddp` has them all (docs/library.md).

A mistake raises `vgg_ddp.errors.UserError`, which says what is wrong, where, and what to do; `run_training` and
`run_evaluation` print that and raise `RuntimeError` with the exit code.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from vgg_ddp import cli, preflight
from vgg_ddp import report as pages
from vgg_ddp.config import Config, load
from vgg_ddp.data import of_run
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.settling import settle, with_class_weights
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation.stored import StoredEvaluation, read_evaluation
from vgg_ddp.export.formats import Classifier
from vgg_ddp.model import VGG, initialize
from vgg_ddp.run import checkpoint
from vgg_ddp.run.directory import RunDirectory, chosen_checkpoint, find_run
from vgg_ddp.training import loading, parts, shrunk_images, whitening
from vgg_ddp.training.initial_weights import InitialWeights


def load_config(path: str | Path, *changes: str) -> Config:
    """The configuration in a YAML file, changed by words such as "epochs=2" or "optimizer.learning_rate=0.1".

    Raises:
        UserError: a missing file, an unknown key, a wrong type or value.
    """
    return load(path, changes)


def open_dataset(config: Config) -> tuple[Config, Dataset]:
    """The data set that `data.source` names, prepared first where it is not there yet.

    Returns:
        `config` with values in place of those that it leaves to the data set, and the data set.

    Raises:
        UserError: the source cannot be had or is not what it should be.
    """
    dataset = Dataset(preflight.prepare_data(config)[0])
    config, _ = settle(config, dataset)
    return msgspec.structs.replace(config, loss=with_class_weights(config.loss, dataset)), dataset


def build_network(config: Config, dataset: Dataset) -> VGG:
    """A network for the classes of a data set, with initial weights by `seed`, on the CPU.

    It takes normalised images, float [n, 3, height, width], and returns logits, [n, classes].
    """
    drawn = InitialWeights(partial(initialize, method=config.model.initialization, seed=config.seed), [], None)
    initial = whitening.added(drawn, config, dataset, ALONE)
    return parts.build_network(config, len(dataset.classes), ALONE.device, initial.set)


def training_batches(config: Config, dataset: Dataset, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch in their order, augmented and normalised, as a training on one rank feeds its network,
    at that epoch's image size (`data.train_sizes`); `loss.hardest` is not applied: the training loop does that.

    Returns:
        Images, float [n, 3, size, size], and targets: labels, int64 [n], or shares of classes, float [n, classes], of mixed
        images.

    Raises:
        UserError: fewer images than a batch, or one that is too small or cannot be decoded.
    """
    data = parts.build_data(config, dataset, ALONE)
    appearance = parts.build_appearance(config, dataset, ALONE.device)
    preprocess = parts.build_preprocess(config, dataset, ALONE.device)
    sizes = config.data.train_sizes
    side = sizes[epoch] if epoch < len(sizes) else None
    for batch in data.train_loader.stream(data.order.slices(epoch)):
        pixels, targets = appearance(batch.images, batch.labels, batch.slice)
        yield preprocess.normalise(pixels, side), targets


def evaluation_batches(config: Config, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images, each once, in batches of `evaluate.batch`, resized and cut as a training validates them.

    Returns:
        Images, uint8 [n, size, size, 3], as the network of `load_network` takes them, and labels, int64 [n].

    Raises:
        UserError: an image that is too small or cannot be decoded.
    """
    loader = parts.evaluation_loader(config, dataset, "test", ALONE)
    samples = torch.arange(len(dataset.split("test"))).numpy()
    for batch in loader.stream(evaluation_slices(samples, config.evaluate.batch)):
        yield batch.images, batch.labels


def load_network(target: str | Path) -> Classifier:
    """The trained network of a run or a checkpoint, in evaluation mode on the CPU, with its normalisation.

    It takes pixels, uint8 [n, size, size, 3], and returns logits, [n, classes]. Its `network` takes normalised images.

    Raises:
        UserError: no run or checkpoint, one that is damaged, or a run of an earlier version whose data set is gone.
    """
    run, folder = find_run(Path(target))
    config = run.prepared_here()
    folder = folder or chosen_checkpoint(run, config.evaluate.checkpoint)
    dataset = of_run.held(run) or of_run.find(run) or Dataset(preflight.prepare_data(config)[0])
    files = checkpoint.read(folder)
    load_weights = partial(loading.load_weights, files, folder)
    network = parts.build_network(config, len(dataset.classes), ALONE.device, load_weights)
    preprocess = parts.build_preprocess(config, dataset, ALONE.device)
    shrunk_images.take_statistics(network, config, folder, checkpoint.state(files), ALONE)
    return Classifier(preprocess, network).eval()


def run_training(path: str | Path, *changes: str) -> Path:
    """Train, evaluate and report, as `vgg-ddp train` does, on every device of this host; the run's folder.

    Raises:
        RuntimeError: it did not come to its end; what it said was printed.
    """
    _run("train", str(path), *changes)
    return Path(load(path, changes).run.dir)


def run_evaluation(target: str | Path, *changes: str) -> StoredEvaluation:
    """Evaluate a run or a checkpoint on the test images, as `vgg-ddp evaluate` does.

    Returns:
        The contents of RUN/evaluation (of a folder in RUN/evaluations for another data set or protocol): `summary`, and for
        each image `label`, `prediction` and `probabilities`.

    Raises:
        RuntimeError: it did not come to its end; what it said was printed.
    """
    _run("evaluate", str(target), *changes)
    resolved = preflight.check_evaluation(str(target), changes)
    return read_evaluation(Path(resolved.out or resolved.run))


def write_report(run: str | Path) -> Path:
    """Draw the report of a run again, as `vgg-ddp report` does; the page.

    Raises:
        UserError: one of its files is damaged, or the page cannot be written.
    """
    return pages.write_report(Path(run), of_run.find(RunDirectory(run)))


@dataclass(frozen=True)
class ShownReport:
    """A report that a notebook shows below its cell, in a frame of its own."""

    page: Path

    def _repr_html_(self) -> str:
        text = html.escape(self.page.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{text}" width="100%" height="700" style="border: 0" sandbox="allow-scripts"></iframe>'


def show_report(run: str | Path) -> ShownReport:
    """The report of a run, as the last expression of a notebook's cell shows it; its `page` is the file.

    Raises:
        UserError: the run has no report yet.
    """
    page = RunDirectory(run).report
    if not page.is_file():
        raise UserError(f"{run} has no report; vgg-ddp report {run} draws one")
    return ShownReport(page)


def _run(*words: str) -> None:
    if code := cli.main(words):
        raise RuntimeError(f"vgg-ddp {words[0]} ended with exit code {code}; what it said stands above")
