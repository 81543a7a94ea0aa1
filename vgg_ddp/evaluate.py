"""The evaluation of a checkpoint on the test split: figures from all ranks, table and report from rank 0.

Start it with `vgg-ddp evaluate`, or `torchrun ... -m vgg_ddp.evaluate`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vgg_ddp import preflight
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset, read_record
from vgg_ddp.distributed import rank_process
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import own_images, test_set
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say, table
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.resolved import ResolvedRun

MOST_LINES = 20  # of the table of answers that is printed


def evaluate_and_report(config: Config, dataset: Dataset, run: RunDirectory, folder: Path, world: World) -> None:
    """Evaluate the checkpoint in `folder`, print the table, and write RUN/evaluation and RUN/report. All ranks together.

    Raises:
        UserError: a checkpoint that is damaged or of another network, or a disk that cannot be written.
    """
    summary = test_set.evaluate(config, dataset, run, folder, world)
    if summary is not None:
        from vgg_ddp.report import write_report  # only here: a training itself needs neither pictures nor templates

        show(summary)
        with run.writing():
            say(f"report: {write_report(run.path, dataset)}")


def show(summary: dict[str, Any]) -> None:
    """Print accuracy per class, worst last, and over all."""
    ranked = sorted(summary["per_class"], key=lambda c: -1 if c["accuracy"] is None else -c["accuracy"])
    shown = ranked if len(ranked) <= 20 else [*ranked[:10], *ranked[-10:]]
    rows = [[c["name"], f"{c['images']}", "-" if c["accuracy"] is None else f"{c['accuracy']:.1%}"] for c in shown]
    table(f"{summary['network']} on the test images of {summary['dataset']}", ["class", "images", "accuracy"], rows)
    top5 = "" if summary["top5_accuracy"] is None else f", top-5 {summary['top5_accuracy']:.2%}"
    say(f"test accuracy {summary['accuracy']:.2%}{top5}, loss {summary['loss']:.3f}, {summary['images']} images")


def run(resolved: ResolvedRun, world: World) -> None:
    """Evaluate and report, from the same resolved run on every rank."""
    from vgg_ddp.trackers.follow import followed

    config, _ = precision.set_arithmetic(resolved.config, world.device)
    directory = RunDirectory(resolved.run)
    dataset = Dataset(resolved.dataset, read_record(directory.trained_on))
    if world.is_main and resolved.choices:
        say("\n".join(resolved.choices))
    trackers = resolved.trackers if world.is_main else {}
    with followed(config, directory, dataset.directory, State(), trackers):
        evaluate_and_report(config, dataset, directory, Path(resolved.checkpoint), world)


def answer_images(resolved: ResolvedRun, folder: Path, world: World) -> None:
    """Answer for every image in `folder`, write RUN/images/FOLDER, and print the answers. For one rank alone.

    Raises:
        UserError: no image in the folder, a checkpoint that is damaged or of another network, or a full disk.
    """
    from vgg_ddp.report.image_answers import Answer, write_image_answers

    config, _ = precision.set_arithmetic(resolved.config, world.device)
    run = RunDirectory(resolved.run)
    dataset = Dataset(resolved.dataset, read_record(run.trained_on))
    unreadable: list[str] = []
    found = own_images.answers(folder, config, dataset, Path(resolved.checkpoint), world.device, unreadable)
    answers = [Answer.of(one.name, one.label, one.probabilities, one.pixels, one.seen) for one in found]
    if not answers:
        raise UserError(f"no image in {folder} can be decoded; the first: {unreadable[0]}")
    rows = [
        {
            "file": one.name,
            "label": one.label,
            "prediction": dataset.classes[one.order[0]],
            "probabilities": {dataset.classes[k]: float(one.probabilities[k]) for k in one.order},
        }
        for one in answers
    ]
    target = run.path / "images" / (folder.resolve().name or "root")
    with run.writing():
        run.write_json(target / "predictions.json", {"images": rows, "unreadable": unreadable})
    page = write_image_answers(
        answers, unreadable, dataset.classes, config.network, dataset.name, folder, target / "index.html"
    )
    lines = [[one.name, dataset.classes[one.order[0]], f"{one.probabilities.max():.1%}"] for one in answers]
    table(f"{config.network} on {folder}", ["file", "answer", "confidence"], lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        say(f"and {len(lines) - MOST_LINES} more")
    for line in unreadable:
        say(f"left out: {line}")
    say(f"answers to {len(answers)} images: {page}")


def main(arguments: list[str], images: Path | None = None) -> int:
    """One rank of an evaluation: `RUN|CHECKPOINT [key=value ...]`, or what `vgg-ddp evaluate` hands its ranks.

    Args:
        images: a folder of images to answer for in place of the test split.

    Returns:
        The exit code.
    """

    def body(world: World) -> None:
        resolved = preflight.on_ranks(arguments, world, preflight.check_evaluation)
        world.use_threads(resolved.config.threads)
        run(resolved, world) if images is None else answer_images(resolved, images, world)

    return rank_process.run(body)


if __name__ == "__main__":
    rank_process.leave(main(sys.argv[1:]))
