"""Which parts of the pictures the surest mistakes come from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.reading import Evaluation

FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # the style sheet's orange and blue
STRONGEST = 0.75  # opacity


def values(evaluation: Evaluation) -> dict[str, Any] | None:
    """Each picture as the network sees it, with what its answer comes from; None where that was not looked for."""
    found = evaluation.summary["why"]["occlusion"]
    if found is None:
        return None
    views = evaluation.causes["occluded_views"]
    drawn: list[tuple[str, Any]] = [
        ("seen", views),
        ("parts", [_over(*pair) for pair in zip(views, evaluation.causes["occlusion"])]),
    ]
    if found["grad_cam"]:
        drawn.append(("sight", [_over(*pair) for pair in zip(views, evaluation.causes["grad_cam"])]))
    rows = []
    for number, sample in enumerate(found["sample_index"]):
        k = evaluation.position(sample)
        true, answer = evaluation.classes[evaluation.label[k]], evaluation.classes[evaluation.prediction[k]]
        rows.append(
            {
                "index": sample,
                "pixelated": thumbnails.pixelated(views[number]),
                "sources": {name: thumbnails.single(pictures[number]) for name, pictures in drawn},
                "words": f"{words.quoted(true)}, taken for {words.quoted(answer)}: "
                f"{words.percent(float(evaluation.confidence[k]), 0)}",
                "alt": f"{evaluation.split} image {sample} of {evaluation.dataset}: {true}, taken for {answer}",
            }
        )
    return {"window": found["window"], "stride": found["stride"], "grad_cam": found["grad_cam"], "rows": rows}


def _over(view: NDArray[np.uint8], values_of: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture [side, side, 3] in faint grey under a map of any size: orange where it is above zero, blue where below."""
    strength = np.asarray(
        Image.fromarray(values_of.astype(np.float32)).resize(view.shape[1::-1], Image.Resampling.BILINEAR)
    )
    strength = np.nan_to_num(strength / max(float(np.abs(strength).max()), 1e-9))[..., None]
    grey = 0.5 * view.mean(axis=2, keepdims=True) + 100
    colour = np.where(strength > 0, np.array(FOR), np.array(AGAINST))
    opacity = STRONGEST * np.abs(strength)
    return np.clip((1 - opacity) * grey + opacity * colour, 0, 255).astype(np.uint8)
