"""The training images that are nearest to an image in the features before the network's last layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import intervals, labels
from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.intervals import QUANTILE
from vgg_ddp.analysis.predictions import Predictions

SHOWN = 5  # nearest images of each image
VOTING = 10  # nearest images that a training image's label is held against
SUREST = 100  # mistakes whose nearest images are counted
MOST_IMAGES = 48  # of each list
FEWEST = 10  # mistakes, below which their scatter says little
_ROWS = 500  # compared at a time, 40 MB for 20,000 others

Features = NDArray[np.float16]  # [images, width], each of length one, so that a product is a cosine


def nearest(images: Features, others: Features, count: int, themselves: bool = False) -> NDArray[np.int64]:
    """The `count` of `others` with the largest cosine to each of `images`, the nearest first: int64 [images, count].

    Args:
        themselves: both are the same images, and none is its own neighbour.
    """
    theirs = others.astype(np.float32).T
    count = min(count, len(others) - themselves)
    if count <= 0:
        return np.empty((len(images), 0), np.int64)
    parts = [np.empty((0, count), np.int64)]
    for start in range(0, len(images), _ROWS):
        cosine = images[start : start + _ROWS].astype(np.float32) @ theirs
        if themselves:
            cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -2.0
        best = np.sort(np.argpartition(cosine, len(others) - count, axis=1)[:, len(others) - count :], axis=1)
        order = np.argsort(-np.take_along_axis(cosine, best, axis=1), axis=1, kind="stable")
        parts.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(parts)


def of_mistakes(
    predictions: Predictions, features: Features, train_labels: NDArray[np.int64], train: Features
) -> dict[str, Any]:
    """Whether the nearest training images of the surest mistakes carry the network's wrong answer.

    Args:
        features: of the images of `predictions`; `train` and `train_labels`: of the training images that are searched.

    Returns: how many `mistakes` there are, how many `nearest` images of each are counted, and the mean shares of these
    that carry the `wrong_answer`, with its interval over the mistakes (None for fewer than `FEWEST`), and the
    `true_label`; beside them the shares `by_chance`: those among all training images that are searched.
    """
    sure = labels.surest_mistakes(predictions.label, predictions.prediction, predictions.probabilities.max(axis=1))
    sure = sure[:SUREST]
    found = train_labels[nearest(features[sure], train, SHOWN)]
    answer, truth = predictions.prediction[sure], predictions.label[sure]
    shares = (found == answer[:, None]).mean(axis=1) if found.size else np.zeros(len(sure))
    frequency = np.bincount(train_labels, minlength=predictions.logits.shape[1]) / max(len(train_labels), 1)
    if not len(sure) or not found.size:
        return {"mistakes": 0, "nearest": SHOWN}
    return {
        "mistakes": len(sure),
        "nearest": found.shape[1],
        "wrong_answer": float(shares.mean()),
        "wrong_answer_interval": _interval(shares),
        "wrong_answer_by_chance": float(frequency[answer].mean()),
        "true_label": float((found == truth[:, None]).mean()),
        "true_label_by_chance": float(frequency[truth].mean()),
    }


def of_each_mistake(
    predictions: Predictions, features: Features, train_labels: NDArray[np.int64], train: Features, most: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """The mistakes, as samples [n], and the labels of the nearest training images of each, the nearest first, [n, `SHOWN`].

    Args:
        most: how many mistakes are looked at; if there are more, they are chosen evenly spread.
    """
    mistakes = np.flatnonzero(predictions.prediction != predictions.label)
    mistakes = mistakes[spread(len(mistakes), most)]
    found = train_labels[nearest(features[mistakes], train, SHOWN)]
    return predictions.sample_index[mistakes], found.astype(np.uint16)


def _interval(shares: NDArray[np.float64]) -> intervals.Interval | None:
    """The interval of the mean share over mistakes; if all shares are equal, Wilson's, as if each mistake were one trial."""
    if len(shares) < FEWEST:
        return None
    mean, error = float(shares.mean()), QUANTILE * float(shares.std(ddof=1)) / len(shares) ** 0.5
    if not error:
        return intervals.wilson(round(mean * len(shares)), len(shares))
    return max(0.0, mean - error), min(1.0, mean + error)


def doubtful_training_labels(predictions: Predictions, near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of training images whose label is doubtful, the most doubtful first.

    Confident learning (`labels.doubtful_labels`) on the mean of two views of an image: the network's probabilities, and the
    shares of its nearest images' labels ("SimiFeat": Zhu, Dong and Liu 2022, "Detecting corrupted labels without training a
    model to predict"). The network has seen these labels and may have learned wrong ones by heart; the neighbours of a
    wrong label are images that carry the right one.

    Args:
        predictions: on training images; `near`: the nearest of each among them, [images, count].
    """
    images, classes = predictions.logits.shape
    votes = np.zeros((images, classes))
    np.add.at(votes, (np.arange(images)[:, None], predictions.label[near]), 1 / max(near.shape[1], 1))
    return labels.doubtful_labels(predictions.label, (np.exp(predictions.log_probabilities) + votes) / 2)
