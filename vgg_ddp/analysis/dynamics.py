"""What the answers to the training images, epoch after epoch, say about each of them: easy, ambiguous, or labelled wrongly.

Data maps: Swayamdipta et al., "Dataset cartography: mapping and diagnosing datasets with training dynamics", EMNLP 2020,
section 2. The area under the margin: Pleiss et al., "Identifying mislabeled data using the area under the margin ranking",
NeurIPS 2020, section 3. Forgetting: Toneva et al., "An empirical study of example forgetting during deep neural network
learning", ICLR 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_EPOCHS = 3  # of which anything is said
BINS = 20  # of the data map, each way
MOST_IMAGES = 48  # of each list

Counts = NDArray[np.int64]
Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Dynamics:
    """Of each training image, sorted by sample.

    Attributes:
        samples: the images that were trained on at least once, int64[n].
        epochs: in how many epochs each was, int64[n].
        confidence: mean over these epochs of the label's probability, [n].
        variability: its standard deviation, [n].
        margin: mean of the margin, which is the area under it, [n].
        right: the epochs in which the answer was the label, int64[n].
        forgotten: how often it was right in one epoch and wrong in the next one that had the image, int64[n].
    """

    samples: Counts
    epochs: Counts
    confidence: Figures
    variability: Figures
    margin: Figures
    right: Counts
    forgotten: Counts

    @property
    def never_right(self) -> NDArray[np.bool_]:
        """Whether no answer was the label, [n]."""
        return self.right == 0


def dynamics(answers: Iterable[NDArray[np.float32]]) -> Dynamics | None:
    """From the margins and probabilities [2, images] of each epoch; None where there is no epoch.

    One epoch is in memory at a time.
    """
    sums: Figures | None = None
    for margin, probability in (epoch.astype(np.float64) for epoch in answers):
        if sums is None:
            sums = np.zeros((4, len(margin)))  # epochs, probability, its square, margin
            right, forgotten = np.zeros((2, len(margin)), dtype=np.int64)
            was_right = np.zeros(len(margin), dtype=np.bool_)
        known = np.isfinite(margin)
        sums[:, known] += np.stack([np.ones_like(margin), probability, probability**2, margin])[:, known]
        is_right = known & (margin > 0)
        right += is_right
        forgotten += known & was_right & ~is_right
        was_right = np.where(known, is_right, was_right)
    if sums is None:
        return None
    samples = np.flatnonzero(sums[0])
    epochs, confidence, square, margin = sums[:, samples]
    confidence, square, margin = confidence / epochs, square / epochs, margin / epochs
    variability = np.sqrt(np.maximum(0.0, square - confidence**2))
    return Dynamics(
        samples, epochs.astype(np.int64), confidence, variability, margin, right[samples], forgotten[samples]
    )


def describe(found: Dynamics | None, labels: Counts, classes: list[str]) -> dict[str, Any] | None:
    """What RUN/evaluation/summary.json says of them; None where there are no `FEWEST_EPOCHS` epochs.

    Args:
        labels: of the whole split, by sample.

    Returns: counts of images `never_right`, `always_right` and `forgotten` at least once, of those `trained_on`, in `epochs` at
    most and `fewest_epochs` at least;
    `map`: images by [confidence, variability] in `BINS` equal steps to 1 and to 0.5; `per_class`: the same counts by class;
    `lowest_margin` and `most_forgotten`: samples with their label, the epochs they were in and right in, how often forgotten,
    margin and confidence.
    """
    if found is None or not len(found.samples) or found.epochs.max() < FEWEST_EPOCHS:
        return None
    label = labels[found.samples]
    counts, _, _ = np.histogram2d(found.confidence, found.variability, bins=BINS, range=((0, 1), (0, 0.5)))
    by_margin = np.argsort(found.margin, kind="stable")
    by_forgetting = np.lexsort((found.margin, -found.forgotten))
    return {
        "epochs": int(found.epochs.max()),
        "fewest_epochs": int(found.epochs.min()),
        **_counted(found, np.ones(len(label), dtype=np.bool_)),
        "map": counts.astype(np.int64).tolist(),
        "per_class": [{"name": name, **_counted(found, label == k)} for k, name in enumerate(classes)],
        "lowest_margin": [_row(found, k, classes[label[k]]) for k in by_margin[:MOST_IMAGES]],
        "most_forgotten": [
            _row(found, k, classes[label[k]]) for k in by_forgetting[:MOST_IMAGES] if found.forgotten[k]
        ],
    }


def _counted(found: Dynamics, which: NDArray[np.bool_]) -> dict[str, Any]:
    epochs, right = found.epochs[which], found.right[which]
    return {
        "trained_on": len(epochs),
        "never_right": int((right == 0).sum()),
        "always_right": int((right == epochs).sum()),
        "forgotten": int((found.forgotten[which] > 0).sum()),
        "confidence": float(found.confidence[which].mean()) if len(epochs) else None,
    }


def _row(found: Dynamics, k: int, name: str) -> dict[str, Any]:
    return {
        "sample": int(found.samples[k]),
        "label": name,
        "epochs": int(found.epochs[k]),
        "right": int(found.right[k]),
        "forgotten": int(found.forgotten[k]),
        "margin": round(float(found.margin[k]), 4),
        "confidence": round(float(found.confidence[k]), 4),
    }
