"""Accuracy per class, and what the worst or most missed one is taken for."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import Counts, cumulative, recall, taken_for
from vgg_ddp.analysis.standing import FEWEST, Standing
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections import curves

STANDS = {"better": "better", "worse": "worse", "too few images": "too few"}  # than the others together
EVEN = 0.2  # counts of classes that differ by no more, relatively, are about the same
MOST_ANSWERS = 10  # rows of what the worst class is taken for


def values(evaluation: Evaluation, metrics: list[dict[str, Any]], held_out: list[int]) -> dict[str, Any]:
    """The table of all classes, by accuracy; their curves, from `held_out` images of each; and what the worst or most missed
    class is taken for.
    """
    classes, confusion = evaluation.classes, evaluation.confusion
    totals, accuracy = confusion.sum(axis=1), recall(confusion)
    ranked = np.argsort(-np.nan_to_num(accuracy, nan=-1.0), kind="stable").tolist()
    rows = [
        {
            "name": classes[k],
            "share": row["accuracy"],
            "ends": row["accuracy_interval"],
            "accuracy": "no images" if row["accuracy"] is None else words.percent(row["accuracy"]),
            "interval": words.span(row["accuracy_interval"]),
            "stands": STANDS.get(evaluation.standing.verdicts[k], ""),
            "stands_why": f"p {words.p_value(evaluation.standing.p_values[k])}",
            **_kind(evaluation, k),
            "correct": words.number(int(confusion[k, k])),
            "images": words.number(int(totals[k])),
            "precision": words.measure(row["precision"]),
            "precision_interval": words.span(row["precision_interval"]),
            "f1": words.measure(row["f1"]),
            "f1_interval": words.span(row["f1_interval"]),
        }
        for k, row in ((k, evaluation.summary["per_class"][k]) for k in ranked)
    ]
    ended_worst = [k for k in ranked[::-1] if totals[k]]
    return {
        "per_class": rows,
        "has_kinds": bool(evaluation.groups),
        "class_curves": curves.classes_over_epochs(metrics, classes, ended_worst, _validated(held_out)),
        **_worst(evaluation),
    }


def _kind(evaluation: Evaluation, k: int) -> dict[str, str]:
    """How often the images of class `k` are taken for a class of its own group, and which that is."""
    name, row = evaluation.classes[k], evaluation.confusion[k]
    for group, found in evaluation.groups.items():
        if name in found["classes"] and row.sum():
            members = [evaluation.classes.index(member) for member in found["classes"]]
            within = int(row[members].sum())
            return {
                "kind": words.percent(within / int(row.sum())),
                "kind_words": f"{name} as one of {words.quoted(group)}: {within:,} of {int(row.sum()):,}",
            }
    return {"kind": words.DASH, "kind_words": ""}


def _validated(held_out: list[int]) -> str:
    """On how many images the training was validated, and where these are nearly even, how many of a class."""
    if not sum(held_out):
        return "validation images"
    even = max(held_out) - min(held_out) <= max(2, EVEN * max(held_out))
    of_class = f", about {words.number(max(1, round(sum(held_out) / len(held_out))))} of each class" if even else ""
    return f"{words.images_of(sum(held_out), 'validation')}{of_class}"


def _worst(evaluation: Evaluation) -> dict[str, Any]:
    """What the worst class is taken for, and the same list for every class."""
    classes, confusion = evaluation.classes, evaluation.confusion
    worst = evaluation.looked_at
    if worst is None:
        return {"worst": None}
    answers = taken_for(confusion, worst)
    misses = sum(count for _, count in answers)
    rows = cumulative(confusion, worst, classes, MOST_ANSWERS)
    if len(answers) > MOST_ANSWERS:
        rest = misses - sum(row["images"] for row in rows)
        others = {"name": f"{len(answers) - MOST_ANSWERS} other classes", "images": rest, "share": rest / misses}
        rows.append({**others, "together": 1.0})
    return {
        "worst": {
            "name": classes[worst],
            "stands_out": worst in evaluation.standing.worst,
            "words": " ".join(
                sentence
                for sentence in (
                    standing_sentence(classes, confusion, evaluation.standing, worst),
                    misses_sentence(classes, confusion, worst),
                    kin_sentence(classes, confusion, evaluation.groups, worst),
                )
                if sentence
            ),
            "misses": words.number(misses),
            "images": words.number(int(confusion[worst].sum())),
            "answers": [
                {
                    "name": row["name"],
                    "images": words.number(row["images"]),
                    "share": row["share"],
                    "accuracy": words.percent(row["share"]),
                    "together": words.percent(row["together"]),
                }
                for row in rows
            ],
        },
        "cumulative": [
            {"name": name, "answers": cumulative_line(cumulative(confusion, k, classes, MOST_ANSWERS))}
            for k, name in enumerate(classes)
        ],
    }


def misses_sentence(classes: list[str], confusion: Counts, true: int) -> str:
    """What the missed images of a class are taken for: the three most frequent, and their share together."""
    answers = taken_for(confusion, true)
    misses = sum(count for _, count in answers)
    missed = words.named(classes[true])
    if len(answers) == 1:
        always = words.named(classes[answers[0][0]])
        return f"When {missed} is missed it is always taken for {always} ({words.counted(misses, 'miss', 'misses')})."
    first = [f"{words.named(classes[k])} ({words.percent(count / misses, 0)})" for k, count in answers[:3]]
    together = words.percent(sum(count for _, count in answers[:3]) / misses, 0) if len(answers) > 3 else "all"
    return (
        f"When {missed} is missed it is taken for {', '.join(first)}: together {together} of its "
        f"{words.number(misses)} misses."
    )


def standing_sentence(classes: list[str], confusion: Counts, standing: Standing, shown: int) -> str:
    """Whether the class whose misses are shown is worse than the others, or only shown for its misses."""
    if shown not in standing.worst:
        return "No class is worse than the others by more than chance; this is the one with most misses."
    images, right = int(confusion.sum()), int(np.trace(confusion))
    own_images, own_right = int(confusion[shown].sum()), int(confusion[shown, shown])
    others = words.percent((right - own_right) / max(images - own_images, 1))
    return (
        f"{words.percent(own_right / own_images)} of its images are named correctly, of the others {others}: more than chance "
        f"(p {words.p_value(standing.p_values[shown])}, Fisher's exact test, corrected by Holm for "
        f"{words.number(int((confusion.sum(axis=1) >= FEWEST).sum()))} classes)."
    )


def kin_sentence(classes: list[str], confusion: Counts, groups: dict[str, dict[str, Any]], true: int) -> str:
    """How many of the wrong answers to a class stay in its group; empty where it has no group."""
    own = [name for name, group in groups.items() if classes[true] in group["classes"]]
    if not own or len(groups[own[0]]["classes"]) < 2:
        return ""
    inside = [k for k, name in enumerate(classes) if name in groups[own[0]]["classes"] and k != true]
    misses = int(confusion[true].sum() - confusion[true, true])
    kept = words.percent(int(confusion[true, inside].sum()) / misses, 0)
    return f"{kept} of the wrong answers stay among {words.quoted(own[0])}."


def cumulative_line(rows: list[dict[str, Any]]) -> str:
    """A cumulative list in one line: each answer's share of the misses, and in brackets that of all so far."""
    said = [f"{row['name']} {words.percent(row['share'], 0)} ({words.percent(row['together'], 0)})" for row in rows]
    return ", ".join(said) or "never missed"
