"""Runs side by side: what changed in the configuration, in the curves, in the classes, and whether it is more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vgg_ddp.analysis import course
from vgg_ddp.analysis.significance import CHANCE, Difference, MeanDifference, compare, compare_classes
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import UserError
from vgg_ddp.report import charts, words
from vgg_ddp.report.kept_pictures import Kept, Pictures
from vgg_ddp.report.reading import Evaluation, read_evaluation
from vgg_ddp.report.rendering import render
from vgg_ddp.report.sections import curves, figures
from vgg_ddp.report.sections.pictures import TILES, Tile, tile
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import last_written, read_metrics

STYLES = ["first", "second", "third", "fourth", "fifth", "sixth"]  # of lines, one for each run
NOT_COMPARED = ("run.dir", "resume")  # keys that tell nothing about the training

SECTIONS = [
    ("story", "In short"),
    ("changes", "What changed"),
    ("training", "Training"),
    ("classes", "Classes"),
    ("pictures", "Pictures"),
]


@dataclass(frozen=True)
class Run:
    """What one run left behind, under a name that no other of the runs has."""

    name: str
    evaluation: Evaluation
    metrics: list[dict[str, Any]]
    trained: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, str]


def write_side_by_side(folders: list[Path], dataset: Dataset | None, path: Path) -> Path:
    """Write a page that puts runs side by side, the first being what the others are held against.

    Args:
        dataset: what the first run was evaluated on, for pictures; None shows none.

    Raises:
        UserError: a run without an evaluation, more runs than can be told apart, or the page cannot be written.
    """
    if len(folders) > len(STYLES):
        raise UserError(f"{len(folders)} runs side by side are too many to tell apart; give at most {len(STYLES)}")
    runs = [read_run(folder, name) for folder, name in zip(folders, names_of(folders))]
    first, others = runs[0], runs[1:]
    same = [paired(first, other) for other in others]
    differences = [
        compare(first.evaluation.right, other.evaluation.right) if is_same else None
        for other, is_same in zip(others, same)
    ]
    datasets = list(dict.fromkeys(run.evaluation.dataset for run in runs))
    values = {
        "title": f"{' against '.join(run.name for run in runs)} on {words.listed(datasets)}",
        "dataset": words.listed(datasets),
        "split": first.evaluation.split,
        "names": [run.name for run in runs],
        "verdicts": [_verdict(first, other, found) for other, found in zip(others, differences)],
        "reach": _reach(runs),
        "notes": [
            *(
                f"{run.name}: {warning}"
                for run in runs
                for warning in course.warnings(run.metrics, run.evaluation.confusion)
            ),
            *(f"{run.name}: {words.shown(str(note))}" for run in runs for note in run.environment.get("fallbacks", [])),
        ],
        "overview": _overview(runs),
        "changes": changes_of(runs),
        "curves_drawn": curves_of(runs, words.listed(datasets), STYLES),
        "classes": _classes(runs, same),
        "grids": _grids(first, others[0], dataset) if same[0] and dataset else [],
        "sections": SECTIONS,
    }
    return render("side_by_side.html.j2", values, path)


def read_run(folder: Path, name: str) -> Run:
    """What the run in `folder` left behind.

    Raises:
        UserError: it has no evaluation, or a file of it is damaged.
    """
    config = folder / "config.yaml"
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{config} cannot be read: {error}") from None
    return Run(
        name=name,
        evaluation=read_evaluation(folder),
        metrics=last_written(read_metrics(folder / "metrics.jsonl")),
        trained=read_json(folder / "summary.json") or {},
        environment=read_json(folder / "environment.json") or {},
        config={key.replace(" / ", "."): value for key, value in figures.flat(settings)},
    )


def names_of(folders: list[Path]) -> list[str]:
    """The folders' last parts, or their whole paths where two are called the same."""
    short = [folder.resolve().name for folder in folders]
    return [words.shown(str(f) if short.count(name) > 1 else name) for f, name in zip(folders, short)]


def paired(first: Run, other: Run) -> bool:
    """Whether two runs answered the same questions: the same images of the same data."""
    one, two = first.evaluation, other.evaluation
    return (
        first.environment.get("data_sha256") == other.environment.get("data_sha256")
        and one.classes == two.classes
        and np.array_equal(one.sample_index, two.sample_index)
        and np.array_equal(one.label, two.label)
    )


def _verdict(first: Run, other: Run, found: Difference | None) -> dict[str, str]:
    """Whether the other run is better than the first, in short and in a sentence."""
    accuracies = [run.evaluation.summary["accuracy"] for run in (first, other)]
    said = f"{first.name} names {words.percent(accuracies[0], 2)} correctly, {other.name} {words.percent(accuracies[1], 2)}."
    if found is None:
        answer = f"{words.points(accuracies[1] - accuracies[0])} points"
        why = "They were evaluated on different images, so nothing more can be said."
    else:
        chance = found.p_value >= CHANCE
        answer = "No more than chance" if chance else "Yes" if found.difference > 0 else "No, it is worse"
        why = (
            f"The difference is {words.points(found.difference)} points, 95{words.NBSP}% interval {interval(found)} "
            f"(bootstrap over images, widened where few differ). "
            f"{words.images_of(found.only_first, first.evaluation.split)} only {first.name} gets right, "
            f"{words.number(found.only_second)} only {other.name}: McNemar p {words.p_value(found.p_value)}."
        )
    return {"question": f"Is {other.name} better than {first.name}?", "answer": answer, "words": f"{said} {why}"}


def _reach(runs: list[Run]) -> str:
    """What the comparison can tell: something of these networks, not of their recipes."""
    alone = [key for key, _ in changes_of(runs)] == ["seed"]
    seeds = "They differ in their seed alone. " if alone else ""
    return (
        f"{seeds}This compares these networks on these images. Two trainings of one recipe with different seeds differ too, "
        "often by more than chance: to compare recipes, train each with several seeds and run vgg-ddp report A1 A2 A3 "
        "--against B1 B2 B3."
    )


def _overview(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Rows of figures, a column for each run."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        summary = run.evaluation.summary
        for name, value in [
            ("Network", run.evaluation.network),
            ("Data set", run.evaluation.dataset),
            ("95 % interval of the accuracy", words.span(summary["accuracy_interval"])),
            *figures.numbers(summary, run.trained),
            ("Calibration error (ECE)", words.percent(summary["calibration"]["expected_calibration_error"])),
        ]:
            rows.setdefault(name, []).append(value)
    return list(rows.items())


def changes_of(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The keys of the configuration in which the runs differ, with the value in each."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    values = {key: [run.config.get(key, words.DASH) for run in runs] for key in keys}
    return [(key, of_runs) for key, of_runs in values.items() if len(set(of_runs)) > 1]


def curves_of(runs: list[Run], dataset: str, styles: list[str]) -> list[dict[str, Any]]:
    """A chart for each measure, with a line for each run in the style of its place."""
    drawn = []
    for name, split, scope, value, shares in (
        ("training loss", "train", "epoch", "loss", False),
        ("validation accuracy", "validation", "epoch", "accuracy", True),
        ("learning rate", "train", "steps", "lr", False),
        ("images/s", "train", "steps", "images_per_second", False),
    ):
        lines = [
            charts.Line(run.name, curves.series(run.metrics, split, scope, value), style)
            for run, style in zip(runs, styles)
        ]
        drawn += curves.chart(name, f"{name[0].upper()}{name[1:]} on {dataset}", lines, shares)
    return drawn


def _classes(runs: list[Run], paired: list[bool]) -> list[dict[str, Any]]:
    """A row for each class of the first run, with the other runs' differences from it."""
    first = runs[0].evaluation
    untested: list[Difference | None] = [None] * len(first.classes)
    others = [
        (
            {row["name"]: row["accuracy"] for row in other.evaluation.summary["per_class"]},
            compare_classes(first.label, first.right, other.evaluation.right, len(first.classes)) if same else untested,
        )
        for other, same in zip(runs[1:], paired)
    ]
    return [
        {
            "name": name,
            "accuracy": words.measure(row["accuracy"]),
            "others": [
                {"accuracy": words.measure(accuracies.get(row["name"])), **_difference(differences[k])}
                for accuracies, differences in others
            ],
        }
        for k, (name, row) in enumerate(zip(first.classes, first.summary["per_class"]))
    ]


def _difference(found: Difference | None) -> dict[str, str]:
    """The cells of a class's difference; empty ones where it was not tested."""
    if found is None:
        return dict.fromkeys(("difference", "interval", "p_value", "style"), "")
    return {
        "difference": words.points(found.difference),
        "interval": interval(found),
        "p_value": words.p_value(found.p_value),
        "style": "" if found.p_value >= CHANCE else "better" if found.difference > 0 else "worse",
    }


def interval(found: Difference | MeanDifference) -> str:
    """The ends of the interval of a difference that has one, in points."""
    assert found.interval is not None
    return f"{words.points(found.interval[0])} to {words.points(found.interval[1])}"


def _grids(first: Run, other: Run, dataset: Dataset) -> list[tuple[str, list[Tile]]]:
    """Nine images that only one of two runs gets right, for each: those on which it is surest."""
    pictures = Pictures(Kept("", [], [], 0, []), dataset)
    grids = []
    for wins, loses in ((first, other), (other, first)):
        apart = np.flatnonzero(wins.evaluation.right & ~loses.evaluation.right)
        apart = apart[np.argsort(-wins.evaluation.confidence[apart], kind="stable")][:TILES]
        caption = f"Images of {first.evaluation.dataset} that only {wins.name} gets right, with what {loses.name} says"
        grids.append((caption, [tile(loses.evaluation, pictures, int(k)) for k in apart]))
    return grids
