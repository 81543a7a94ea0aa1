"""Accuracy by attributes of single images, and where people agree and where they do not."""

from __future__ import annotations

from typing import Any

from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation


def values(evaluation: Evaluation) -> dict[str, Any]:
    """A table for each attribute, and one by how far people agree; neither without the files of `analysis`."""
    why = evaluation.summary["why"]
    return {
        "attributes": _attributes(why["by_attribute"]),
        "people": _people(why["by_agreement"], len(evaluation.classes)),
    }


def _attributes(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    tables = [
        {
            "name": words.shown(name),
            "left_out": words.number(column["left_out"]) if column["left_out"] else "",
            "rows": [
                {
                    "name": words.shown(row["value"]),
                    "share": row["accuracy"],
                    "ends": row["accuracy_interval"],
                    "accuracy": words.percent(row["accuracy"]),
                    "interval": words.span(row["accuracy_interval"]),
                    "stands": row["stands"],
                    "p_value": f"p {words.p_value(row['p_value'])}",
                    "images": words.number(row["images"]),
                }
                for row in column["values"]
            ],
        }
        for name, column in found["attributes"].items()
    ]
    notes = [f"{words.shown(note)}." for note in found["notes"]]
    if found["columns"] > len(tables):
        notes.append(f"Of {found['columns']} attributes the first {len(tables)} are shown.")
    return {"words": attributes_sentence(found), "tables": tables, "notes": " ".join(notes)}


def attributes_sentence(found: dict[str, Any]) -> str:
    """On which values of an attribute the network is worse or better than on the others by more than chance."""
    said = []
    for verdict in ("worse", "better"):
        rows = [
            (name, row)
            for name, column in found["attributes"].items()
            for row in column["values"]
            if row["stands"] == verdict
        ]
        rows.sort(key=lambda pair: pair[1]["p_value"])
        if rows:
            shown = [
                f"{words.quoted(words.shown(row['value']))} of {words.shown(name)} ({words.percent(row['accuracy'])}, the "
                f"others {words.percent(row['others'])})"
                for name, row in rows[:3]
            ]
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            said.append(f"{verdict.capitalize()} than on the others, by more than chance: {words.listed(shown)}{more}.")
    source = f"Attributes from {words.shown(found['file'])}."
    return f"{source} {' '.join(said) or 'On no value is it better or worse than on the others by more than chance.'}"


def _people(found: dict[str, Any] | None, classes: int) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "words": people_sentence(found, classes),
        "rows": [
            {
                "name": row["name"],
                "least": words.percent(row["least"], 0),
                "share": row["accuracy"] or 0,
                "ends": row["accuracy_interval"],
                "accuracy": words.measure(row["accuracy"]),
                "interval": words.span(row["accuracy_interval"]),
                "people": words.measure(row["people"]),
                "images": words.number(row["images"]),
            }
            for row in found["rows"]
        ],
    }


def people_sentence(found: dict[str, Any], classes: int) -> str:
    """How often people give the label, and whether they share the network's mistakes; of two `classes` there is no other
    wrong answer to hold them against.
    """
    if not found["asked"]:
        return f"{words.shown(found['file'])} has no labels of these images."
    said = (
        f"Of the people asked (labels in {words.shown(found['file'])}), {words.percent(found['people'])} give an image "
        f"its label, in the mean over {words.images_of(found['asked'], 'test')}."
    )
    if not found["mistakes"]:
        return said
    one = found["mistakes"] == 1
    answers = "one wrong answer is" if one else f"{words.number(found['mistakes'])} wrong answers are"
    said += f" The network's {answers} given by {words.percent(found['shared'])} of them"
    if classes <= 2:
        return f"{said}."
    same = "image" if one else "images"
    return f"{said}, any other wrong answer to the same {same} by {words.percent(found['shared_by_chance'])}."
