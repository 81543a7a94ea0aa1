"""What a network relies on: how often it is still right where a part of what a picture tells is taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import intervals, significance
from vgg_ddp.analysis.standing import holm


def describe(
    right: dict[str, NDArray[np.bool_]], unchanged: NDArray[np.bool_], kinds: dict[str, NDArray[np.bool_]]
) -> dict[str, Any]:
    """The accuracy under each change, beside that on the same images unchanged.

    Args:
        right: by change, whether each image was named correctly, [n].
        kinds: by class or group of classes, which of the images are of it, [n].

    Returns: `images`, `accuracy` unchanged with its interval, and `changes`: of each its `accuracy` and interval, the
    `difference` with its interval and p-value (McNemar, corrected by Holm for the number of changes), and `kinds`, the
    accuracy of each kind, None where no image is of it. `kinds` has the same unchanged, with the number of images.
    """
    against = [significance.compare(unchanged, changed) for changed in right.values()]
    p_values = holm(np.array([found.p_value for found in against]))
    return {
        "images": len(unchanged),
        **_accuracy(unchanged),
        "kinds": {name: {"images": int(of.sum()), **_accuracy(unchanged[of])} for name, of in kinds.items()},
        "changes": {
            name: {
                **_accuracy(changed),
                "difference": found.difference,
                "difference_interval": found.interval,
                "p_value": float(p_value),
                "kinds": {kind: _accuracy(changed[of])["accuracy"] for kind, of in kinds.items()},
            }
            for (name, changed), found, p_value in zip(right.items(), against, p_values)
        },
    }


def _accuracy(right: NDArray[np.bool_]) -> dict[str, Any]:
    count = int(right.sum())
    return {
        "accuracy": count / len(right) if len(right) else None,
        "accuracy_interval": intervals.wilson(count, len(right)),
    }
