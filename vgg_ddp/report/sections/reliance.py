"""What the network relies on: its accuracy on changed pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.significance import CHANCE
from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections.matrices import STRONGEST_CELL

# By change: how the picture is then, and what it takes away. See `vgg_ddp.evaluation.changes`.
MEANINGS = {
    "grey": ("in grey", "colour"),
    "other colours": ("in opposite colours", "which colours things have"),
    "dark": ("in four tenths of the light", "brightness"),
    "noise": ("under noise", "clean pixels"),
    "blur": ("blurred", "fine detail"),
    "shifted": ("shifted by an eighth", "where in the picture things are"),
    "turned": ("turned by 30 degrees", "an upright picture"),
    "mirrored": ("mirrored", "left and right"),
    "upside down": ("upside down", "above and below"),
    "shuffled": ("cut into 4 x 4 squares that change their places", "how the parts lie to one another"),
    "without the middle": ("with its middle hidden", "what is in the middle"),
    "the middle alone": ("with all but its middle hidden", "what is around the middle"),
}
MOST_IN_A_SENTENCE = 3
SPARED = 0.05  # of the correct answers at most, at the far end of the interval, are lost without what is not relied on


def values(evaluation: Evaluation) -> dict[str, Any] | None:
    """The sentence, a row for each change, and a table by kind; None where it was not tried."""
    found = evaluation.summary["why"]["relied_on"]
    if found is None:
        return None
    pictures = evaluation.causes["changed_pictures"]
    names = ["", *list(found["changes"])]
    rows = [found, *found["changes"].values()]
    return {
        "words": reliance_sentence(found, evaluation.split, len(evaluation.classes)),
        "rows": [
            {
                "name": MEANINGS[name][0] if name else "as it is",
                "source": thumbnails.single(picture, thumbnails.SMOOTH_ABOVE),
                "pixelated": thumbnails.pixelated(picture),
                "alt": f"{evaluation.split} image {found['example']} of {evaluation.dataset} "
                f"{MEANINGS[name][0] if name else 'as it is'}",
                "share": row["accuracy"],
                "ends": row["accuracy_interval"],
                "accuracy": words.percent(row["accuracy"]),
                "interval": words.span(row["accuracy_interval"]),
                "difference": words.points(row["difference"]) if name else "",
                "differs": ("yes" if row["p_value"] < CHANCE else "no") if name else "",
                "p_value": f"p {words.p_value(row['p_value'])}" if name else "",
            }
            for name, row, picture in zip(names, rows, pictures, strict=True)
        ],
        "changes": ["as it is", *(MEANINGS[name][0] for name in found["changes"])],
        "kinds": _by_kind(found),
        "of": "group" if evaluation.groups else "class",
    }


def _by_kind(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each group or class: its accuracy unchanged and under each change, the more lost the stronger coloured."""
    rows = []
    for kind, unchanged in found["kinds"].items():
        before = unchanged["accuracy"]
        if before is None:
            continue
        shares = [before, *(change["kinds"][kind] for change in found["changes"].values())]
        lost = np.clip((before - np.array(shares)) / max(before, 1e-9), 0, 1) * STRONGEST_CELL
        cells = [
            {"text": words.cell(share), "opacity": round(float(strength), 3)} for share, strength in zip(shares, lost)
        ]
        rows.append({"name": words.shown(kind), "images": words.number(unchanged["images"]), "cells": cells})
    return rows


def reliance_sentence(found: dict[str, Any], split: str, classes: int) -> str:
    """On what the network relies most, and what it can do without; one that only guesses among so many `classes` has nothing
    to lose.
    """
    said = (
        f"On {words.images_of(found['images'], split)} it names {words.percent(found['accuracy'])} as they are. Where it names "
        "fewer of the same images once they are changed, it relies on what the change takes away."
    )
    harmful = sorted(
        (name for name, row in found["changes"].items() if row["p_value"] < CHANCE and row["difference"] < 0),
        key=lambda name: float(found["changes"][name]["difference"]),
    )
    spared = [
        name
        for name, row in found["changes"].items()
        if found["accuracy"] > 1 / classes
        and row["p_value"] >= CHANCE
        and row["difference_interval"][0] > -SPARED * found["accuracy"]
    ]

    def described(names: list[str]) -> str:
        few = names[:MOST_IN_A_SENTENCE]
        return words.listed(
            [f"{MEANINGS[k][1]} ({MEANINGS[k][0]}: {words.percent(found['changes'][k]['accuracy'])})" for k in few]
        )

    if harmful:
        said += f" It relies most on {described(harmful)}."
    if spared:
        said += f" Little or nothing is lost without {described(spared)}."
    return said
