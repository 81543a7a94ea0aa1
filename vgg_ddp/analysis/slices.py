"""Accuracy by what is known of single images: attributes of one's own, and how far people agree on a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import intervals, significance, standing

MOST_VALUES = 20  # of one attribute that are shown, the most frequent
MOST_ATTRIBUTES = 20
QUARTERS = 4  # of an attribute in numbers
AGREEMENT = {"nearly all agree": 0.95, "most agree": 0.75, "they do not agree": 0.0}  # least share of the top label


def by_attribute(right: NDArray[np.bool_], columns: dict[str, list[str]]) -> dict[str, Any]:
    """The accuracy on the images of each value of each attribute.

    Args:
        right: whether each image was named correctly, [n].
        columns: by attribute its value of each image, "" where it is not known. One in numbers with more than `MOST_VALUES`
            values is cut into four parts of as many images each.

    Returns: by attribute its `values`, each with `images`, `accuracy`, its interval, the accuracy of the `others` of the
    attribute, and `stands` ("better", "worse" or "") with its p-value: Fisher's exact test against the others, corrected by
    Holm for all values of all attributes; and `left_out`, the images of values that are too many to show or are not known.
    """
    shown = {}
    for name, values in list(columns.items())[:MOST_ATTRIBUTES]:
        cut = _in_quarters(values) if len(set(values) - {""}) > MOST_VALUES else values
        found, which = np.unique(np.array(cut, dtype=np.str_), return_inverse=True)
        counts = np.bincount(which, minlength=len(found))
        kept = [k for k in np.argsort(-counts, kind="stable") if found[k]][:MOST_VALUES]
        shown[name] = [(str(found[k]), right[which == k]) for k in kept]
    raw = [
        p_value
        for rows in shown.values()
        for p_value in standing.against_the_others(
            np.array([of.sum() for _, of in rows], dtype=np.int64),
            np.array([len(of) for _, of in rows], dtype=np.int64),
        )
    ]
    corrected = iter(standing.holm(np.array(raw)).tolist())
    return {
        name: {
            "values": [_row(value, of, rows, next(corrected)) for value, of in rows],
            "left_out": len(right) - sum(len(of) for _, of in rows),
        }
        for name, rows in shown.items()
    }


def _row(
    value: str, right: NDArray[np.bool_], rows: list[tuple[str, NDArray[np.bool_]]], p_value: float
) -> dict[str, Any]:
    count, images = int(right.sum()), len(right)
    others, of_others = sum(int(of.sum()) for _, of in rows) - count, sum(len(of) for _, of in rows) - images
    stands = "" if p_value >= significance.CHANCE else "better" if count * of_others > others * images else "worse"
    return {
        "value": value,
        "images": images,
        "accuracy": count / images,
        "accuracy_interval": intervals.wilson(count, images),
        "others": others / of_others if of_others else None,
        "stands": stands,
        "p_value": p_value,
    }


def _in_quarters(values: list[str]) -> list[str]:
    """If all values are numbers, the quarter that each is in, e.g. "1: 1 to 2.5"; otherwise the values as they are."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return values
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return values
    ends = np.quantile(known, np.linspace(0, 1, QUARTERS + 1))
    quarter = np.clip(np.searchsorted(ends, numbers, side="left") - 1, 0, QUARTERS - 1)
    names = [f"{k + 1}: {ends[k]:.4g} to {ends[k + 1]:.4g}" for k in range(QUARTERS)]
    return [names[k] if np.isfinite(number) else "" for k, number in zip(quarter, numbers)]


def by_agreement(
    label: NDArray[np.int64], prediction: NDArray[np.int64], shares: NDArray[np.float64]
) -> dict[str, Any]:
    """The accuracy where people agree on what a picture shows, and where they do not.

    Peterson, Battleday, Griffiths and Russakovsky 2019, "Human uncertainty makes classification more robust".

    Args:
        label, prediction: classes, [n].
        shares: of the people who gave each class, [n, classes]; rows of zeros where nobody was asked.

    Returns: `asked`: on how many images anybody was asked; `people`: the mean share that gave the label; `rows`: by
    `AGREEMENT` the `images`, the network's `accuracy` with its interval and the share of `people` who gave the label;
    `mistakes`: the network's wrong answers on these images, and `shared`: the mean share of people who gave these wrong
    answers, with `shared_by_chance`: that of the other wrong classes in the mean.
    """
    asked = shares.sum(axis=1) > 0
    label, prediction, shares = label[asked], prediction[asked], shares[asked]
    right, own = prediction == label, shares[np.arange(len(label)), label]
    agreed, below = shares.max(axis=1, initial=0.0), np.inf
    rows = []
    for name, least in AGREEMENT.items():
        inside = (agreed >= least) & (agreed < below)
        count, images, below = int(right[inside].sum()), int(inside.sum()), least
        rows.append(
            {
                "name": name,
                "least": least,
                "images": images,
                "accuracy": count / images if images else None,
                "accuracy_interval": intervals.wilson(count, images),
                "people": float(own[inside].mean()) if images else None,
            }
        )
    theirs = shares[~right, prediction[~right]]
    rest = (1 - own[~right] - theirs) / max(shares.shape[1] - 2, 1)
    return {
        "asked": len(label),
        "people": float(own.mean()) if len(label) else None,
        "rows": rows,
        "mistakes": int((~right).sum()),
        "shared": float(theirs.mean()) if len(theirs) else None,
        "shared_by_chance": float(rest.mean()) if len(theirs) else None,
    }
