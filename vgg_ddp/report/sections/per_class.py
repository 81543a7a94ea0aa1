"""Accuracy per class, and what the worst or most missed one is taken for."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import cumulative, recall, taken_for
from vgg_ddp.config import Config
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections import curves

STANDS = {"better": "better", "worse": "worse", "too few images": "too few"}  # than the others together
MOST_ANSWERS = 10  # rows of what the worst class is taken for


def values(evaluation: Evaluation, metrics: list[dict[str, Any]], recipe: Config | None) -> dict[str, Any]:
    """The table of all classes, by accuracy; their curves; and what the worst or most missed class is taken for."""
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
        "class_curves": curves.classes_over_epochs(metrics, classes, ended_worst, _validated(evaluation, recipe)),
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


def _validated(evaluation: Evaluation, recipe: Config | None) -> str:
    """On how many images the training was validated, and how many that is of a class."""
    counts = evaluation.summary["data"]["class_counts"]
    share = recipe.data.validation if recipe else 0.0
    of_classes = (
        counts["validation"] if "validation" in counts else [round(count * share) for count in counts.get("train", [])]
    )
    images = sum(of_classes)
    if not images:
        return "validation images"
    each = max(1, round(images / len(of_classes)))
    return f"{words.images_of(images, 'validation')}, about {words.number(each)} of each class"


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
                    words.standing_sentence(classes, confusion, evaluation.standing, worst),
                    words.misses_sentence(classes, confusion, worst),
                    words.kin_sentence(classes, confusion, evaluation.groups, worst),
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
            {"name": name, "answers": words.answers(cumulative(confusion, k, classes, MOST_ANSWERS))}
            for k, name in enumerate(classes)
        ],
    }
