"""The evaluation of a checkpoint on the test split: figures from all ranks, table and report from rank 0.

Start it with `vgg-ddp evaluate`, or `torchrun ... -m vgg_ddp.evaluate`.
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vgg_ddp import preflight
from vgg_ddp.analysis.neighbours import Features
from vgg_ddp.config import Config
from vgg_ddp.data import of_run
from vgg_ddp.data.dataset import QUICKLY_READ, Dataset
from vgg_ddp.data.record import DatasetRecord, read_record
from vgg_ddp.distributed import rank_process
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError, leave
from vgg_ddp.evaluation import own_images, test_set
from vgg_ddp.evaluation.image_files import not_images
from vgg_ddp.loaders.choice import choose, fallbacks
from vgg_ddp.optim import precision
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import box, say, table
from vgg_ddp.run.directory import RunDirectory, find_run
from vgg_ddp.run.files import read_json, replace_file
from vgg_ddp.run.resolved import ResolvedRun

if TYPE_CHECKING:
    from vgg_ddp.report.image_answers import Nearest

STANDS = {
    "better": "better",
    "worse": "worse",
    "too few images": "too few images",
    "as the others": "",
    "no images": "",
}
MOST_LINES = 20  # of the table of answers that is printed


def evaluate_and_report(
    config: Config, dataset: Dataset, run: RunDirectory, folder: Path, world: World, out: str = ""
) -> None:
    """Evaluate the checkpoint in `folder`, print the table, and write RUN/evaluation and RUN/report. All ranks together.

    Args:
        out: another folder to write evaluation/ and report/ in. Without it the network is shown each image once, and what
            `config.evaluate` asks for beyond that is written to RUN/evaluations.

    Raises:
        UserError: a checkpoint that is damaged or of another network, or a disk that cannot be written.
    """
    world.activity.enter("evaluate")
    asked, name = config, config.evaluate.name
    if not out:
        asked = msgspec.structs.replace(config, evaluate=config.evaluate.once)
    summary = test_set.evaluate(asked, dataset, RunDirectory(out or run.path), folder, world)
    if summary is not None:
        from vgg_ddp.report import write_report  # only here: a training itself needs neither pictures nor templates

        if not out and (totals := read_json(run.summary)) is not None:
            run.write_json(run.summary, totals | {"warnings": summary["warnings"]})
        show(summary, f"seen of each image: {summary['protocol']['text']}" if asked.evaluate.name else "")
        world.activity.enter("report")
        with run.writing():
            say(f"report: {write_report(run.path, dataset, Path(out or run.path))}")
    if name and not out:
        evaluate_and_report(config, dataset, run, folder, world, str(run.evaluations / name))


def show(summary: dict[str, Any], how: str = "") -> None:
    """Print the warnings, the accuracy per class (lowest last), which classes stand out, and the overall accuracy.

    Args:
        how: what is unusual about the answers; "" if nothing is.
    """
    if summary["warnings"]:
        box("Before any figure", "\n".join(summary["warnings"]))
    ranked = sorted(summary["per_class"], key=lambda c: -1 if c["accuracy"] is None else -c["accuracy"])
    shown = ranked if len(ranked) <= 20 else [*ranked[:10], *ranked[-10:]]
    rows = [
        [
            c["name"],
            f"{c['images']}",
            "-" if c["accuracy"] is None else f"{c['accuracy']:.1%}",
            STANDS[c["against_others"]],
        ]
        for c in shown
    ]
    columns = ["class", "images", "accuracy", "than the others"]
    table(f"{summary['network']} on the test images of {summary['dataset']}", columns, rows)
    if len(ranked) > 1 and not (summary["best"] or summary["worst"]):
        say("no class is named better or worse than the others by more than chance")
    top5 = "" if summary["top5_accuracy"] is None else f", top-5 {summary['top5_accuracy']:.2%}"
    shares = [f"test accuracy {summary['accuracy']:.2%}{top5}"]
    means = f"balanced accuracy {summary['balanced_accuracy']:.2%}, macro F1 {summary['macro_f1']:.2%}"
    shares = [f"classes are uneven: {means}", *shares] if summary["uneven"] else [*shares, means]
    say(f"{', '.join(shares)}, loss {summary['loss']:.3f}, {summary['images']} images")
    if how:
        say(how)


def run(resolved: ResolvedRun, world: World) -> None:
    """Evaluate and report, from the same resolved run on every rank."""
    from vgg_ddp.trackers.follow import followed

    config, _ = precision.set_arithmetic(resolved.config, world.device, world.of_all)
    directory = RunDirectory(resolved.run)
    # The run's folder may lie on rank 0's host alone.
    trained_on = world.from_main(lambda: msgspec.json.encode(read_record(directory.data)))
    with world.together():
        dataset = Dataset(resolved.dataset, msgspec.json.decode(trained_on, type=DatasetRecord | None))
        if world.local_rank == 0:
            dataset.verify(at_most=QUICKLY_READ)
    preflight.must_be_the_same_data(dataset, world)
    said = list(resolved.choices)
    if not (resolved.out and config.evaluate.name):  # else the images are read as the protocol asks for
        with world.together():
            loader = choose(config.loader, dataset.split("test"), config.data, world, evaluated=True)
            said += fallbacks(loader, config.data, world, config.evaluate.batch)
    if world.is_main and said:
        say("\n".join(said))
    trackers = resolved.trackers if world.is_main else {}
    with followed(config, directory, dataset.directory, State(), trackers):
        evaluate_and_report(config, dataset, directory, Path(resolved.checkpoint), world, resolved.out)


def answer_images(resolved: ResolvedRun, folder: Path, world: World) -> None:
    """Classify every image in `folder`, write RUN/images/FOLDER, and print the answers. Runs on a single rank.

    Raises:
        UserError: no image in the folder, a checkpoint that is damaged or of another network, or a full disk.
    """
    from vgg_ddp.report.image_answers import MOST_IMAGES, Answer, write_image_answers
    from vgg_ddp.report.words import counted

    config, _ = precision.set_arithmetic(resolved.config, world.device)
    run = RunDirectory(resolved.run)
    dataset = of_run.held(run) or Dataset(resolved.dataset)
    unreadable: list[str] = []
    network = own_images.OwnImages(config, dataset, Path(resolved.checkpoint), world)
    answers: list[Answer] = []
    described = []
    for one in network.answers(folder, unreadable):
        drawn = len(answers) < MOST_IMAGES
        answers.append(Answer.of(one.name, one.label, one.probabilities, one.pixels, one.seen, drawn))
        described += [one.features] if one.features is not None else []
    if not answers:
        raise UserError(f"no image in {folder} can be decoded; the first: {unreadable[0]}")
    near = _nearest(network, run, described[:MOST_IMAGES])
    rows = [
        {
            "file": one.name,
            "label": one.label,
            "prediction": dataset.classes[one.order[0]],
            "probabilities": {dataset.classes[c]: float(one.probabilities[c]) for c in one.order},
            "nearest_training_images": [] if near is None else near.samples[k : k + 1].flatten().tolist(),
        }
        for k, one in enumerate(answers)
    ]
    target = Path(resolved.out) if resolved.out else _own_place(run, folder)
    with run.writing():
        run.write_json(
            target / "predictions.json", {"of": str(folder.resolve()), "images": rows, "unreadable": unreadable}
        )
        replace_file(target / "predictions.csv", _csv(rows, dataset.classes).encode(errors="backslashreplace"))
    views, how = network.views
    page = write_image_answers(
        answers,
        unreadable,
        dataset.classes,
        config.network,
        dataset.name,
        folder,
        target / "index.html",
        views,
        how,
        near,
    )
    lines = [[one.name, dataset.classes[one.order[0]], f"{one.probabilities.max():.1%}"] for one in answers]
    table(f"{config.network} on {folder}", ["file", "answer", "confidence"], lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        say(f"and {len(lines) - MOST_LINES} more")
    for line in [*unreadable, *not_images(folder)]:
        say(f"left out: {line}")
    by = f", by what it saw of each: {how}" if how else ""
    say(f"answers to {counted(len(answers), 'image')}{by}: {page}")


def _nearest(network: own_images.OwnImages, run: RunDirectory, described: list[Features]) -> Nearest | None:
    """The training images nearest to those `described`; None where they cannot be had, after printing any error."""
    from vgg_ddp.report.image_answers import Nearest

    trained_on = of_run.find(run)
    if trained_on is None or not described:
        return None
    try:
        return Nearest.of(trained_on, *network.nearest(trained_on, described))
    except UserError as error:
        say(f"the nearest training images are left out: {error}")
        return None


def _own_place(run: RunDirectory, folder: Path) -> Path:
    """RUN/images/NAME, with a number appended if another folder of that name was classified before."""
    name = folder.resolve().stem if folder.is_file() else folder.resolve().name or "root"
    for number in itertools.count(1):
        target = run.path / "images" / (name if number == 1 else f"{name}-{number}")
        if (read_json(target / "predictions.json") or {}).get("of") in (None, str(folder.resolve())):
            break
    return target


def _csv(rows: list[dict[str, Any]], classes: list[str]) -> str:
    """The answers as a table: the file, the likeliest class, and the probability of each."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["file", "class", *classes])
    table.writerows([row["file"], row["prediction"], *(row["probabilities"][name] for name in classes)] for row in rows)
    return text.getvalue()


def main(arguments: list[str], images: Path | None = None) -> int:
    """One rank of an evaluation: `RUN|CHECKPOINT [key=value ...]`, or what `vgg-ddp evaluate` hands its ranks.

    Args:
        images: an image, or a folder of them, to answer for in place of the test split.

    Returns:
        The exit code.
    """

    def body(world: World) -> None:
        resolved = preflight.on_ranks(arguments, world, partial(preflight.check_evaluation, images=images))
        world.use_cores(resolved.config)
        run(resolved, world) if images is None else answer_images(resolved, images, world)

    def config(target: str, overrides: Sequence[str]) -> Config:
        return find_run(Path(target))[0].prepared_here(overrides)

    return rank_process.run(body, preflight.devices(arguments, config))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
