"""The page of a study: which configuration is best and how sure one can be, what each key does, what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis.effects import Effect, Interaction
from vgg_ddp.analysis.significance import CHANCE
from vgg_ddp.config import load
from vgg_ddp.errors import UserError
from vgg_ddp.report import charts, words
from vgg_ddp.report.rendering import render
from vgg_ddp.report.sections import curves
from vgg_ddp.report.side_by_side import STYLES
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import last_written, read_metrics
from vgg_ddp.study.definition import Definition
from vgg_ddp.study.running import run_folder, validations
from vgg_ddp.study.summary import Configuration, Summary
from vgg_ddp.study.trials import Found

FEW_SEEDS = 3  # below so many the scatter of seeds is hardly known
HELD_OUT_BY = ("data.validation", "data.train_share", "data.split_seed", "data.source", "data.directory")
SECTIONS = [
    ("story", "In short"),
    ("configurations", "Configurations"),
    ("training", "Curves"),
    ("effects", "What each key does"),
    ("cells", "Every training"),
    ("best", "Best configuration"),
]


def write(folder: Path, definition: Definition, found: list[Found], summary: Summary) -> Path:
    """Write STUDY/report/index.html.

    Raises:
        UserError: it cannot be written.
    """
    dataset = _dataset(folder, definition, found)
    best, ended = folder / "best.yaml", all(one.ending not in ("waiting", "running") for one in found)
    ranked = _ranked(definition, summary)
    values = {
        "title": f"Study {words.shown(folder.resolve().name)} on {dataset}",
        "dataset": dataset,
        "measure": f"Validation {definition.objective}",
        "test_shown": definition.test,
        "account": _account(found),
        "cards": _cards(definition, summary, found),
        "keys": [words.shown(key) for key in definition.keys],
        "configurations": [_row(definition, summary, one) for one in ranked],
        "curves_drawn": _curves(folder, definition, found, ranked, dataset),
        "effects": [_effect(definition, effect) for effect in summary.effects],
        "interactions": [_depends(one) for one in summary.interactions if one.p_value < CHANCE],
        "pairs": len(summary.interactions),
        "cells": [
            {
                "name": words.shown(cell.name),
                "seed": cell.seed,
                "ending": cell.ending,
                "objective": _figure(definition, cell.objective),
                "seconds": words.duration(cell.seconds) if cell.seconds is not None else words.DASH,
                "why": words.shown(cell.why),
            }
            for cell in summary.cells
        ],
        "best": words.shown_text(best.read_text(encoding="utf-8")) if ended and best.is_file() else None,
        "sections": SECTIONS,
    }
    return render("study.html.j2", values, folder / "report" / "index.html")


def _dataset(folder: Path, definition: Definition, found: list[Found]) -> str:
    """What was trained on, as the first training has it; as it is asked for before there is one."""
    for one in found:
        try:
            name = (read_json(run_folder(folder, one.cell) / "environment.json") or {}).get("data")
        except UserError:
            continue
        if name:
            return words.shown(str(name))
    return words.shown(Path(load(folder / "base.yaml", definition.overrides).data.source).name)


def _figure(definition: Definition, value: float | None) -> str:
    if value is None:
        return words.DASH
    return words.percent(value, 2) if definition.objective == "accuracy" else words.number(value, 4)


def _difference(definition: Definition, value: float) -> str:
    """A difference in the objective, signed: of accuracies in points."""
    return words.points(value) if definition.objective == "accuracy" else f"{value:+.4f}".replace("-", "\u2212")


def _interval(definition: Definition, ends: tuple[float, float] | None) -> str:
    """The ends of an interval; those of an accuracy are cut to 0 and 1, beyond which the t distribution of few seeds may go."""
    if ends is None:
        return words.DASH
    if definition.objective == "accuracy":
        ends = max(0.0, ends[0]), min(1.0, ends[1])
    return " to ".join(_figure(definition, end) for end in ends)


def _ranked(definition: Definition, summary: Summary) -> list[Configuration]:
    """The configurations, the best first, those of which fewer seeds are done later."""
    sign = 1 if definition.higher_is_better else -1
    return sorted(summary.configurations, key=lambda one: (-one.done, -sign * (one.mean or 0.0)))


def _named(one: Configuration) -> str:
    return words.shown(", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in one.values.items()))


def _account(found: list[Found]) -> str:
    """What the page does not have: cells that are not trained, that failed, or were given up."""
    counts = {ending: sum(one.ending == ending for one in found) for ending in dict.fromkeys(o.ending for o in found)}
    lacking = [f"{count} {ending}" for ending, count in counts.items() if ending != "done"]
    return f"Of {len(found)} trainings {counts.get('done', 0)} are done; {', '.join(lacking)}." if lacking else ""


def _cards(definition: Definition, summary: Summary, found: list[Found]) -> list[dict[str, str]]:
    cost = {
        "question": "What did it cost?",
        "answer": words.duration(summary.seconds),
        "words": f"Seconds of training, all cells together; {words.number(summary.images)} images were trained on.",
    }
    by_number = {one.number: one for one in summary.configurations}
    if summary.best is None:
        return [cost]
    best = by_number[summary.best]
    compared = sum(one.done == best.done for one in summary.configurations)
    some = compared < len(summary.configurations)
    of = (
        f" Only the {compared} of {len(by_number)} configurations with as many finished seeds were compared."
        if some
        else ""
    )
    judged = f"the {words.number(best.held_out)} images" if best.held_out else "the images"
    said = f"In the mean of {_seeds(best.done)} {_figure(definition, best.mean)} on {judged} held out from training"
    ends = f", 95{words.NBSP}% interval {_interval(definition, best.interval)}" if best.interval else ""
    tested = (
        f" On the test images, which were used for no choice, it names {words.percent(best.test_accuracy, 2)} correctly."
        if best.test_accuracy is not None
        else ""
    )
    return [
        {"question": "Which configuration is best?", "answer": _named(best), "words": f"{said}{ends}.{of}{tested}"},
        {"question": "Is it better than the others by more than chance?", **_sure(summary, by_number)},
        cost,
        {"question": "What can one conclude?", **reach(definition, summary, found)},
    ]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _sure(summary: Summary, by_number: dict[int, Configuration]) -> dict[str, str]:
    if summary.as_good is None:
        few = "One training of each does not show how much seeds alone change the result: set seeds: 3 or more."
        one = "There is no other configuration with as many seeds done."
        done = max(one.done for one in by_number.values())
        alone = sum(one.done == done for one in by_number.values()) == 1
        return {"answer": "That cannot be told", "words": one if alone else few}
    how = "Differences of means, seed by seed, with the scatter of all configurations; corrected by Holm for their number."
    if not summary.as_good:
        return {"answer": "Yes", "words": f"Every other one that was compared is worse by more than chance. {how}"}
    alike = words.listed([f"\u201c{_named(by_number[number])}\u201d" for number in summary.as_good[:5]])
    more = f" and {len(summary.as_good) - 5} more" if len(summary.as_good) > 5 else ""
    return {
        "answer": f"Not better than {len(summary.as_good)} of them",
        "words": f"It may be as good as {alike}{more}. {how}",
    }


def reach(definition: Definition, summary: Summary, found: list[Found]) -> dict[str, str]:
    """What can be concluded from the figures, and what cannot."""
    said = [f"{len(summary.configurations)} configurations, {_seeds(definition.seeds)} each."]
    if definition.seeds < FEW_SEEDS:
        said.append("So few seeds hardly show how much results vary between seeds: differences of a point may be luck.")
    said.append(
        "Seeds change the initial weights, the order of the images and which of them are held out. The best of several is "
        "best partly by luck, so its own figure is too good, the more so the more configurations there are."
    )
    if chosen := [words.shown(key) for key in definition.varied if key in HELD_OUT_BY]:
        said.append(
            f"{words.listed(chosen)} decide{'s' * (len(chosen) == 1)} which images are held out: these configurations were "
            "judged by different images, and a part of their differences comes from that."
        )
    if any(one.ending == "given up" for one in found):
        said.append("Cells that were given up have no figure: the statements about keys are based on the others alone.")
    said.append("All of it holds for this data, this length of training, and these values.")
    return {"answer": f"{_seeds(definition.seeds).capitalize()} each", "words": " ".join(said)}


def _row(definition: Definition, summary: Summary, one: Configuration) -> dict[str, Any]:
    rest = [f"{count} {ending}" for ending, count in one.endings.items() if ending != "done"]
    alike = summary.as_good is not None and one.number in summary.as_good
    return {
        "values": [words.shown(value) for value in one.values.values()],
        "done": one.done,
        "mean": _figure(definition, one.mean),
        "interval": _interval(definition, one.interval),
        "range": _interval(definition, None if one.lowest is None else (one.lowest, one.highest or one.lowest)),
        "test": words.measure(one.test_accuracy),
        "seconds": words.DASH if one.seconds is None else words.duration(one.seconds),
        "images": words.DASH if one.images is None else words.number(one.images),
        "held_out": words.DASH if one.held_out is None else words.number(one.held_out),
        "said": "; ".join(["best"] * (one.number == summary.best) + ["as good, but for chance"] * alike + rest),
    }


def _curves(
    folder: Path, definition: Definition, found: list[Found], ranked: list[Configuration], dataset: str
) -> list[dict[str, Any]]:
    """Validation and training loss of the best configurations over the epochs, means over their seeds."""
    shown = [one for one in ranked if one.done][: len(STYLES)]
    drawn = []
    for name, split, value, shares in (
        ("validation accuracy", "validation", "accuracy", True),
        ("validation loss", "validation", "loss", False),
        ("training loss", "train", "loss", False),
    ):
        lines = [
            charts.Line(_named(one), _mean_curve(folder, found, one.number, split, value), style)
            for one, style in zip(shown, STYLES)
        ]
        of = f", the best {len(shown)} of {len(ranked)}" if len(shown) < len(ranked) else ""
        caption = f"{name.capitalize()} on {dataset}, mean over seeds{of}"
        drawn += curves.chart(name, caption, lines, shares)
    return drawn


def _mean_curve(folder: Path, found: list[Found], number: int, split: str, value: str) -> charts.Points:
    """The mean at each epoch of which every seed that is done has a figure."""
    of_seeds = []
    for one in found:
        if one.cell.configuration == number and one.ending == "done":
            rows = read_metrics(run_folder(folder, one.cell) / "metrics.jsonl")
            rows = validations(rows) if split == "validation" else last_written(rows)
            of_seeds.append(dict(zip(*curves.series(rows, split, "epoch", value))))
    epochs = sorted(set.intersection(*(set(seed) for seed in of_seeds))) if of_seeds else []
    return epochs, [float(np.mean([seed[epoch] for seed in of_seeds])) for epoch in epochs]


def _effect(definition: Definition, effect: Effect) -> dict[str, Any]:
    """The table of one key."""
    p_value = effect.p_value
    if p_value is None:
        said = (
            "Whether that is more than chance cannot be told from these trainings: there is one of each, or keys changed "
            "together."
        )
    else:
        more = "More than chance" if p_value < CHANCE else "No more than chance"
        said = f"{more}: F test, p {words.p_value(p_value)}."
    means = [level.mean for level in effect.levels if level.mean is not None]
    highest = max(map(abs, means), default=0.0) or 1.0
    return {
        "key": words.shown(effect.factor),
        "words": said,
        "levels": [
            {
                "name": words.shown(level.name),
                "cells": level.cells,
                "share": 0.0 if level.mean is None else abs(level.mean) / highest,
                "mean": _figure(definition, level.mean),
                "difference": words.DASH if level.difference is None else _difference(definition, level.difference),
                "interval": words.DASH
                if level.interval is None
                else " to ".join(_difference(definition, end) for end in level.interval),
            }
            for level in effect.levels
        ],
    }


def _depends(one: Interaction) -> str:
    first, other = map(words.shown, one.factors)
    return (
        f"What {first} does depends on {other} (F test, p {words.p_value(one.p_value)}, corrected for the number of pairs): "
        "look at the configurations themselves, not at the means over the other key."
    )
