"""What the page's script shows of single images: answers, probabilities, names, thumbnails, and the quiz's questions."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.confusions import most_confused_pairs
from vgg_ddp.config import Config
from vgg_ddp.report import thumbnails
from vgg_ddp.report.kept_pictures import QUIZ_PAIRS, Carried, Pictures, carried, of_kept
from vgg_ddp.report.reading import Evaluation

TOP = 5  # answers told of each image
WALL_IMAGES = 160


def describe(
    evaluation: Evaluation, pictures: Pictures | None, recipe: Config | None
) -> tuple[dict[str, Any], list[str]]:
    """The data of the page's script, and the sheets of thumbnails; no sheets where there are no pictures."""
    if pictures is None:
        names, side, drawn = list[str](), 0, list[str]()
        carries = carried(evaluation, None)
    else:
        names, side, drawn = pictures.kept.names, pictures.kept.side, pictures.kept.sheets
        carries = of_kept(evaluation, pictures.kept)
    chosen = carries.positions
    probabilities = np.nan_to_num(evaluation.probabilities)[chosen]
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    data = {
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "classes": evaluation.classes,
        "confusion": _sparse(evaluation.confusion),
        "index": evaluation.sample_index[chosen].tolist(),
        "label": evaluation.label[chosen].tolist(),
        "top": _packed(top.astype(np.uint16)),
        "probability": _packed(_steps(np.take_along_axis(probabilities, top, axis=1))),
        "tops": top.shape[1],
        "near": _near(evaluation, chosen),
        "names": names,
        "side": side,
        "seen": recipe.data.image_size if recipe else 0,
        "sheet": thumbnails.SHEET,
        "wall": np.searchsorted(chosen, carries.even[spread(len(carries.even), WALL_IMAGES)]).tolist(),
        "quiz": _quiz(evaluation, carries) if drawn else [],
    }
    return data, drawn


def _near(evaluation: Evaluation, chosen: NDArray[np.int64]) -> dict[str, list[int]]:
    """The labels of the nearest training images of each mistake that is carried, the nearest first, by sample."""
    causes = evaluation.causes
    if "mistaken_samples" not in causes:
        return {}
    carried_samples = set(evaluation.sample_index[chosen].tolist())
    near = zip(causes["mistaken_samples"].tolist(), causes["labels_near_mistakes"].tolist())
    return {str(sample): labels for sample, labels in near if sample in carried_samples}


def _quiz(evaluation: Evaluation, carries: Carried) -> list[dict[str, Any]]:
    """Questions "is it this or that?" of the most confused pairs, and how sure the network is that it is the first.

    The network is asked the same question as the person, so it weighs the two classes against each other alone.
    """
    pairs = []
    for first, second in most_confused_pairs(evaluation.confusion, QUIZ_PAIRS):
        share = np.nan_to_num(evaluation.probabilities[:, [first, second]]).astype(np.float64)
        share_of_first = share[:, 0] / np.maximum(share.sum(axis=1), 1e-30)
        of_pair = np.isin(evaluation.label, (first, second))
        right = (share_of_first >= 0.5) == (evaluation.label == first)
        label = evaluation.label[carries.asked]
        images = carries.asked[np.isin(label, (first, second))]
        if not {first, second} <= set(label.tolist()):
            continue
        pairs.append(
            {
                "first": first,
                "second": second,
                "images": np.searchsorted(carries.positions, images).tolist(),
                "share": [round(float(value), 7) for value in share_of_first[images]],
                "accuracy": float(right[of_pair].mean()),
                "of": int(of_pair.sum()),
            }
        )
    return pairs


def quiz_lacks(evaluation: Evaluation, pictures: Pictures | None) -> str:
    """Why there is no quiz, where there is none."""
    if pictures is None:
        return "the pictures cannot be shown"
    if not most_confused_pairs(evaluation.confusion, 1):
        return "no two classes are confused"
    return "too few pictures of the classes that are confused are kept"


def _sparse(confusion: NDArray[np.int64]) -> list[int]:
    """The cells that are not zero, as row, column, count after one another."""
    rows, columns = np.nonzero(confusion)
    return np.stack([rows, columns, confusion[rows, columns]], axis=1).ravel().tolist()


def _steps(shares: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Shares in steps of 1/65535; only an exact 0 becomes 0, and only an exact 1 becomes 65535."""
    rounded = np.round(shares.astype(np.float64) * 65535)
    return np.where((shares > 0) & (shares < 1), np.clip(rounded, 1, 65534), rounded).astype(np.uint16)


def _packed(values: NDArray[np.uint16]) -> str:
    """Little-endian base64."""
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def quiz_pictures_sentence(kept: int, seen: int) -> str:
    """At which size the quiz shows its pictures, and at which the network sees them.

    Args:
        kept: pixels of the pictures that the page carries, 0 without any.
        seen: pixels of the network's input, 0 where that is not known.
    """
    if not (kept and seen):
        return ""
    if kept < seen:
        return f"You see them at {kept} pixels, the network at {seen}."
    return f"You see them as the network does, at {seen} pixels."
