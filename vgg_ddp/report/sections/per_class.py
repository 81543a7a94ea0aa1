"""Accuracy per class, and the class with the lowest."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import cumulative, recall, taken_for, worst_class
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections import curves

MOST_ANSWERS = 10  # rows of what the worst class is taken for


def values(evaluation: Evaluation, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of all classes, best first; their curves; and what the worst class is taken for."""
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
        "class_curves": curves.classes_over_epochs(metrics, classes, ended_worst),
        **_worst(evaluation),
    }


def _worst(evaluation: Evaluation) -> dict[str, Any]:
    """What the worst class is taken for, and the same list for every class."""
    classes, confusion = evaluation.classes, evaluation.confusion
    worst = worst_class(confusion)
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
            "words": words.worst_sentences(classes, confusion, evaluation.groups),
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
