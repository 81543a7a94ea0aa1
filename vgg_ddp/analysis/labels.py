"""Images whose label may be wrong, and the surest mistakes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def surest_mistakes(
    label: NDArray[np.int64], prediction: NDArray[np.int64], confidence: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Positions of the images that were answered wrongly, the surest first; `confidence` [n] is that of the prediction."""
    wrong = np.flatnonzero(prediction != label)
    return wrong[np.argsort(-np.nan_to_num(confidence[wrong], nan=-1.0), kind="stable")]


def doubtful_labels(label: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the images whose label the network contradicts with confidence, the most doubtful first.

    Confident learning (Northcutt, Jiang and Chuang 2021, equations 1 and 2): a class is confidently seen in an image where
    its probability reaches the mean that it has over the images labelled so. An image is doubtful where neither the
    likeliest class confidently seen in it nor the likeliest of all is its label. Ranked by normalised margin, the
    probability of the label less that of the likeliest other class.

    Args:
        probabilities: [n, classes], from a network that was not trained on these images.
    """
    images, classes = probabilities.shape
    own = probabilities[np.arange(images), label]
    present = np.bincount(label, minlength=classes)
    means = np.bincount(label, weights=own, minlength=classes) / np.maximum(present, 1)
    threshold = np.where(present > 0, means, np.inf)  # of a class without images nothing is known
    seen = np.where(probabilities >= threshold - 1e-6, probabilities, -1.0)
    likeliest = seen.argmax(axis=1)
    contradicted = (likeliest != label) & (probabilities.argmax(axis=1) != label)
    doubtful = np.flatnonzero((seen.max(axis=1) >= 0) & contradicted)
    others = probabilities[doubtful].copy()
    others[np.arange(len(doubtful)), label[doubtful]] = -1.0
    return doubtful[np.argsort(own[doubtful] - others.max(axis=1, initial=-1.0), kind="stable")]
