"""Two recipes, each trained with several seeds: whether one is better in the mean, or only luckier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis.significance import CHANCE, MeanDifference, compare_recipes
from vgg_ddp.errors import UserError
from vgg_ddp.report import words
from vgg_ddp.report.rendering import render
from vgg_ddp.report.side_by_side import Run, changes_of, curves_of, interval, names_of, paired, read_run

SECTIONS = [("story", "In short"), ("changes", "What changed"), ("training", "Training"), ("classes", "Classes")]


def write_recipes(first: list[Path], second: list[Path], path: Path) -> Path:
    """Write a page that compares the recipe of the runs `second` with that of the runs `first`.

    Raises:
        UserError: a side with one run or with one seed twice, runs that were evaluated on different images, a run without an
            evaluation, or the page cannot be written.
    """
    for given in (first, second):
        if len(given) < 2:
            raise UserError(
                f"{given[0]} alone tells nothing of its recipe: give two runs or more on each side of --against, trained with "
                "different seeds; two single networks are compared without --against"
            )
    folders = [*first, *second]
    runs = [read_run(folder, name) for folder, name in zip(folders, names_of(folders))]
    sides = runs[: len(first)], runs[len(first) :]
    for run in runs[1:]:
        if not paired(runs[0], run):
            raise UserError(
                f"{run.name} was evaluated on other images than {runs[0].name}; recipes are compared on the same"
            )
    for side in sides:
        _check_seeds(side)
    accuracies = [np.array([run.evaluation.summary["accuracy"] for run in side]) for side in sides]
    evaluation = runs[0].evaluation
    values = {
        "title": f"{_called(sides[1])} against {_called(sides[0])} on {evaluation.dataset}",
        "dataset": evaluation.dataset,
        "sides": [_called(side) for side in sides],
        "verdict": _verdict(sides, compare_recipes(*accuracies), accuracies),
        "runs": [
            (run.name, which, run.config.get("seed", words.DASH), words.percent(run.evaluation.summary["accuracy"], 2))
            for which, side in zip(("first", "second"), sides)
            for run in side
        ],
        "names": [run.name for run in runs],
        "changes": changes_of(runs),
        "curves_drawn": curves_of(runs, evaluation.dataset, ["first"] * len(first) + ["second"] * len(second)),
        "classes": _classes(sides),
        "sections": SECTIONS,
    }
    return render("recipes.html.j2", values, path)


def _check_seeds(side: list[Run]) -> None:
    """Raises a `UserError` where two runs of a recipe have the same seed, since they are the same training."""
    seen: dict[str, str] = {}
    for run in side:
        seed = run.config.get("seed")
        if seed is not None and seed in seen:
            raise UserError(f"{run.name} and {seen[seed]} have the same seed, {seed}: give runs with different seeds")
        seen[seed or run.name] = run.name


def _called(side: list[Run]) -> str:
    return f"{side[0].name} and {len(side) - 1} more"


def _verdict(sides: tuple[list[Run], list[Run]], found: MeanDifference, accuracies: list[Any]) -> dict[str, str]:
    """Whether the second recipe is better than the first, in short and in a sentence."""
    said = [
        f"{_called(side)}: {words.percent(float(of_side.mean()), 2)} in the mean of {len(side)} seeds "
        f"({words.span((float(of_side.min()), float(of_side.max())))})"
        for side, of_side in zip(sides, accuracies)
    ]
    if found.p_value is None:
        answer, test = "It cannot be told", "; seeds make no difference here on either side, so more seeds are needed"
    else:
        chance = found.p_value >= CHANCE
        answer = "No more than chance" if chance else "Yes" if found.difference > 0 else "No, it is worse"
        test = f", 95{words.NBSP}% interval over seeds {interval(found)} (Welch's t test, p {words.p_value(found.p_value)})"
    return {
        "question": f"Is the recipe of {sides[1][0].name} better than that of {sides[0][0].name}?",
        "answer": answer,
        "words": (
            f"{'; '.join(said)}. The means differ by {words.points(found.difference)} points{test}, on the same "
            f"{words.images_of(sides[0][0].evaluation.summary['images'], sides[0][0].evaluation.split)}."
        ),
    }


def _classes(sides: tuple[list[Run], list[Run]]) -> list[dict[str, str]]:
    """A row for each class: its mean accuracy on either side and their difference, p-values corrected for their number."""
    shares = [
        np.array(
            [
                [np.nan if row["accuracy"] is None else row["accuracy"] for row in run.evaluation.summary["per_class"]]
                for run in side
            ]
        )
        for side in sides
    ]
    classes = sides[0][0].evaluation.classes
    shown = [k for k in range(len(classes)) if not np.isnan(shares[0][0, k])]
    found = {k: compare_recipes(shares[0][:, k], shares[1][:, k]) for k in shown}
    tested = {k: one.p_value for k, one in found.items() if one.p_value is not None}
    from scipy.stats import false_discovery_control  # slow to import

    corrected = dict(zip(tested, false_discovery_control(list(tested.values())).tolist())) if tested else {}
    return [
        {
            "name": classes[k],
            "first": words.percent(float(shares[0][:, k].mean())),
            "second": words.percent(float(shares[1][:, k].mean())),
            "difference": words.points(one.difference),
            "p_value": words.p_value(corrected[k]) if k in corrected else words.DASH,
            "style": "" if corrected.get(k, 1.0) >= CHANCE else "better" if one.difference > 0 else "worse",
        }
        for k, one in found.items()
    ]
