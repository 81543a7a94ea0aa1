"""The confusion matrices, of classes and of groups of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.confusions import Counts, most_frequent
from vgg_ddp.analysis.standing import of_counts
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation

LARGEST_NUMBERED_MATRIX = 20  # classes; beyond it the confusion matrix is a picture and a table
MOST_CONFUSIONS = 20
MOST_GROUPS_IN_A_SENTENCE = 4
STRONGEST_CELL = 0.7  # above this opacity a number in a cell of the confusion matrix would be hard to read


def of_classes(evaluation: Evaluation) -> dict[str, Any]:
    """The confusion matrix, in numbers or as a picture, and the most frequent confusions."""
    classes, confusion = evaluation.classes, evaluation.confusion
    totals = confusion.sum(axis=1)
    frequent = [
        {
            "i": i,
            "j": j,
            "true": classes[i],
            "predicted": classes[j],
            "images": words.number(count),
            "accuracy": words.percent(float(count / totals[i])),
            "share": float(count / totals[i]),
        }
        for i, j, count in most_frequent(confusion, MOST_CONFUSIONS if len(classes) > LARGEST_NUMBERED_MATRIX else 8)
    ]
    numbered = len(classes) <= LARGEST_NUMBERED_MATRIX
    return {"classes": classes, "matrix": _matrix(classes, confusion) if numbered else [], "frequent": frequent}


def of_groups(evaluation: Evaluation) -> dict[str, Any]:
    """How often images are taken for a class of their own group."""
    groups, summary = evaluation.groups, evaluation.summary
    if not groups:
        return {"groups": [], "groups_words": no_groups_sentence(summary)}
    ranked = dict(sorted(groups.items(), key=lambda group: -(group[1]["within_accuracy"] or 0)))
    rows = [
        {
            "name": name,
            "members": words.listed(group["classes"]),
            "share": group["within_accuracy"] or 0,
            "right_share": group["accuracy"] or 0,
            "accuracy": words.measure(group["within_accuracy"]),
            "interval": words.span(group["within_interval"]),
            "chance": words.measure(group["within_by_chance"]),
            "right": words.measure(group["accuracy"]),
            "images": words.number(group["images"]),
        }
        for name, group in ranked.items()
    ]
    confusion = np.array([[group["taken_for"][other] for other in ranked] for group in ranked.values()], dtype=np.int64)
    return {
        "groups": rows,
        "groups_words": f"{groups_sentence(groups)} {groups_origin(summary)}",
        "group_matrix": _matrix(list(ranked), confusion) if len(ranked) <= LARGEST_NUMBERED_MATRIX else [],
    }


def _matrix(names: Sequence[str], confusion: Counts) -> list[dict[str, Any]]:
    """The rows of a confusion matrix [true, predicted], in percentages of each row."""
    totals, opacity = confusion.sum(axis=1), _cell_opacity(confusion)
    return [
        {
            "name": names[i],
            "cells": [
                {
                    "text": words.cell(float(confusion[i, j] / totals[i])) if totals[i] else "",
                    "opacity": round(float(opacity[i, j]), 3),
                    "title": f"{names[i]} taken for {names[j]}: {words.number(int(confusion[i, j]))}",
                }
                for j in range(len(names))
            ],
        }
        for i in range(len(names))
    ]


def _cell_opacity(confusion: Counts) -> NDArray[np.float64]:
    """How strongly to colour each cell of a confusion matrix [true, predicted], from 0 to `STRONGEST_CELL`.

    The diagonal is coloured by its share of the row; mistakes by their share against the most frequent mistake, so
    that they can be told apart however rare they are.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    mistakes = shares * ~np.eye(len(shares), dtype=bool)
    strength: NDArray[np.float64] = np.diag(np.diag(shares)) + mistakes / max(mistakes.max(initial=0.0), 0.05)
    return STRONGEST_CELL * strength


def groups_sentence(groups: dict[str, dict[str, Any]]) -> str:
    """How often an image is taken for a class of its own group, the most often first; empty without groups."""
    judged = sorted((g for g in groups.items() if g[1]["images"]), key=lambda group: -group[1]["within_accuracy"])
    if not judged:
        return ""
    said = [
        f"{words.quoted(name)} for {words.quoted(name)} {words.percent(group['within_accuracy'])}"
        for name, group in judged
    ]
    if len(said) > MOST_GROUPS_IN_A_SENTENCE:
        counts = (np.array([group[key] for _, group in judged]) for key in ("within", "images"))
        stands = of_counts(*counts)
        if not (stands.best and stands.worst):
            return ""
        ends = f"{said[stands.best[0]]} at best, {said[stands.worst[0]]} at worst."
        return f"{ends[0].upper()}{ends[1:]}"
    return f"{said[0][0].upper()}{said[0][1:]}" + "".join(f", {text}" for text in said[1:]) + "."


def kind_sentence(summary: dict[str, Any]) -> str:
    """How many images are taken for a class of their own group, and how many would be by chance."""
    together = summary["groups_together"]
    if together is None or not together["images"]:
        return ""
    return (
        f"{words.percent(together['within_accuracy'])} of the {words.images_of(together['images'], summary['split'])} of "
        f"these groups are taken for a class of their own group; {words.percent(together['within_by_chance'])} would be "
        f"expected if the wrong answers had nothing to do with the groups (p {words.p_value(together['p_value'])})."
    )


def groups_origin(summary: dict[str, Any]) -> str:
    """Who named the groups, or where they were found, and that this is more than chance."""
    origin = {
        "data set": "The groups are the data set's own.",
        "configuration": "The groups are those of analysis.groups.",
        "validation images": "Nobody named groups: these were found on the validation images, as classes that the network "
        f"takes for one another there, and are judged here on the {words.shown(summary['split'])} images.",
    }
    return f"{kind_sentence(summary)} {origin.get(summary['groups_from'], '')}".strip()


def no_groups_sentence(summary: dict[str, Any]) -> str:
    """Why there are no groups, and how to name some."""
    why = summary["groups_words"]
    said = "There are no groups of classes: the data set names none"
    return f"{said}{f', and {why}' if why else ''}. Name your own with analysis.groups (docs/report.md)."
