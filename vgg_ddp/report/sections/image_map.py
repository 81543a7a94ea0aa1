"""A map of the test images, on which images with similar features lie together."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.rendering import embedded


def values(evaluation: Evaluation) -> dict[str, Any] | None:
    """The sentence and the places of the images, for the page's script; None where there is no map."""
    found = evaluation.summary["why"]["map"]
    if found is None:
        return None
    k = np.searchsorted(evaluation.sample_index, evaluation.causes["map_samples"])
    places = {
        "index": evaluation.causes["map_samples"].tolist(),
        "label": evaluation.label[k].tolist(),
        "answer": evaluation.prediction[k].tolist(),
        "x": np.round(evaluation.causes["map_places"][:, 0].astype(float), 4).tolist(),
        "y": np.round(evaluation.causes["map_places"][:, 1].astype(float), 4).tolist(),
    }
    return {"words": map_sentence(found, evaluation.split), "data": embedded(places)}


def map_sentence(found: dict[str, Any], split: str) -> str:
    """What the map shows without looking at it."""
    nearest = words.number(found["nearest"])
    return (
        f"{words.images_of(found['images'], split)}, placed so that images with similar features in the layer before the last "
        f"lie together (t-SNE). Of the {nearest} nearest by these features, {words.percent(found['same_class'], 0)} are of the "
        f"image's class, and {words.percent(found['kept'], 0)} are also among the {nearest} nearest on the map: "
        "images that lie together are alike, but how far groups lie apart means little."
    )
