"""What it gets right where it may say that it does not know, or name several classes."""

from __future__ import annotations

import json
from typing import Any

from vgg_ddp.report import charts, words
from vgg_ddp.report.reading import Evaluation

MOST_MISSED = 3  # classes in a sentence
ENOUGH = 0.5  # of the images: the sentence is of the highest sureness at which it still answers so many


def values(evaluation: Evaluation) -> dict[str, Any]:
    """The sentences, the table and the curve of the section."""
    found, images = evaluation.summary["abstention"], evaluation.summary["images"]
    enough = [row for row in found["thresholds"] if row["coverage"] >= ENOUGH]
    shown = (enough or found["thresholds"][:1])[-1]
    caption = (
        f"Accuracy of the network's surest answers on {evaluation.dataset}, by the share of the images that it answers"
    )
    line = charts.Line("accuracy", (found["curve"]["coverage"], found["curve"]["accuracy"]), "validation")
    return {
        "words": abstention_sentence(shown, words.images_of(images, evaluation.split)),
        "sets": sets_sentence(found, evaluation.classes),
        "slider": slider(found["curve"], shown["sureness"]),
        "rows": [
            {
                "sureness": words.percent(row["sureness"], 0),
                "answered": words.number(row["answered"]),
                "coverage": words.percent(row["coverage"]),
                "accuracy": words.measure(row["accuracy"]),
                "interval": words.span(row["accuracy_interval"]),
            }
            for row in found["thresholds"]
        ],
        "caption": caption,
        "svg": charts.lines(
            "accuracy of its answers", caption, [line], "accuracy", shares=True, x_label="share answered"
        ),
    }


def slider(curve: dict[str, list[float]], sureness: float) -> dict[str, Any] | None:
    """What the slider moves over: sureness, share answered and accuracy of each point, from answering all to the surest alone.

    It begins at `sureness`. None for evaluations of versions that kept no sureness.
    """
    if "sureness" not in curve:
        return None
    points = [*zip(curve["sureness"], curve["coverage"], curve["accuracy"])][::-1]
    first = next((k for k, (sure, _, _) in enumerate(points) if sure >= sureness), len(points) - 1)
    return {
        "first": first,
        "last": len(points) - 1,
        "points": json.dumps([[round(value, 7) for value in point] for point in points]),
    }


def abstention_sentence(row: dict[str, Any], images: str) -> str:
    """How much it answers, and how well, where it may leave out what it is not sure of; `row`: see `abstention.thresholds`."""
    if not row["answered"]:
        return f"It is nowhere at least {words.percent(row['sureness'], 0)} sure on these {images}: there it would not answer."
    interval = f"95{words.NBSP}% interval {words.span(row['accuracy_interval'])}"
    return (
        f"Asked only where it is at least {words.percent(row['sureness'], 0)} sure, it answers "
        f"{words.percent(row['coverage'])} of these {images} and is right in {words.percent(row['accuracy'])} of its "
        f"answers ({interval})."
    )


def sets_sentence(abstention: dict[str, Any], classes: list[str]) -> str:
    """How many names it takes to have the right one among them as often as promised, and for which classes that fails."""
    sets = abstention["sets"]
    if sets is None:
        return f"How many names it takes to have the right one among them is not known: {abstention['sets_from']}."
    promised = words.percent(sets["promised"], 0)
    missed = [f"{words.quoted(classes[k])} {words.percent(sets['class_coverage'][k])}" for k in sets["worse"]]
    if len(missed) > MOST_MISSED:
        missed[MOST_MISSED:] = [f"{len(missed) - MOST_MISSED} more"]
    less = f" Less often than the others, by more than chance: {words.listed(missed)}." if missed else ""
    return (
        f"It may also name several classes: all with a probability of {words.percent(sets['least_probability'])} or more, "
        f"so that in {promised} of images like the {abstention['sets_from']} the right one is among them (conformal "
        f"prediction). On the test images it is in {words.percent(sets['coverage'])} (95{words.NBSP}% interval "
        f"{words.span(sets['coverage_interval'])}), with {words.number(sets['names'], 2)} names in the mean; one name in "
        f"{words.percent(sets['one_name'])}, none in {words.percent(sets['no_name'])}.{less}"
    )
