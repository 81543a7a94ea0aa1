"""What a classifier got right, from labels and probabilities; pure functions over NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNEVEN = 1.5  # images of the largest class over the smallest; above this, accuracy mostly reflects the large classes


@dataclass(frozen=True)
class Predictions:
    """The network's answers on a split, in the split's own order.

    Attributes:
        label: the true classes, int64[n].
        logits: float32[n, classes].
        sample_index: indices into the split, int64[n].
    """

    label: NDArray[np.int64]
    logits: NDArray[np.float32]
    sample_index: NDArray[np.int64]

    @property
    def prediction(self) -> NDArray[np.int64]:
        """The class with the largest logit, [n]."""
        return self.logits.argmax(axis=1)

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """The logarithm of the softmax of the logits, [n, classes]."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The softmax of the logits, [n, classes]."""
        return np.exp(self.log_probabilities).astype(np.float32)


def accuracy(predictions: Predictions) -> float:
    """Share of images whose class has the largest logit."""
    return float((predictions.prediction == predictions.label).mean())


def class_accuracies(predictions: Predictions, classes: int) -> list[float | None]:
    """The accuracy of each class; None for one without images."""
    images = np.bincount(predictions.label, minlength=classes)
    right = np.bincount(predictions.label[predictions.prediction == predictions.label], minlength=classes)
    return [float(r / n) if n else None for r, n in zip(right, images)]


def loss(predictions: Predictions) -> float:
    """Mean cross-entropy in nats, without label smoothing."""
    return float(-predictions.log_probabilities[np.arange(len(predictions.label)), predictions.label].mean())


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Share of images whose class is among the k with the largest logits; ties fall to the lower class."""
    best = np.argsort(-predictions.logits, axis=1, kind="stable")[:, :k]
    return float((best == predictions.label[:, None]).any(axis=1).mean())


def summarize(predictions: Predictions, classes: list[str]) -> dict[str, Any]:
    """Loss, top-1 and top-5 accuracy, accuracy, precision, recall and F1 per class, their means, and the confusion matrix.

    Rows of the confusion matrix are true classes, columns predicted ones. A ratio without a denominator (a class without
    images, or never predicted) is null.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # slow to import

    numbers = np.arange(len(classes))
    confusion = confusion_matrix(predictions.label, predictions.prediction, labels=numbers)
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.label, predictions.prediction, labels=numbers, zero_division=np.nan
    )
    per_class = [
        {
            "name": name,
            "images": int(support[i]),
            "correct": int(confusion[i, i]),
            "accuracy": _number(recall[i]),
            "precision": _number(precision[i]),
            "recall": _number(recall[i]),
            "f1": _number(f1[i]),
        }
        for i, name in enumerate(classes)
    ]
    present = support > 0
    return {
        "images": len(predictions.label),
        "accuracy": accuracy(predictions),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "uneven": bool(support.max() > UNEVEN * support[present].min()),
        "top5_accuracy": top_k_accuracy(predictions, 5) if len(classes) > 5 else None,
        "loss": loss(predictions),
        "classes": classes,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
