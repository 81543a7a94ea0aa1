"""All that RUN/evaluation/summary.json says about predictions, put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis import abstention, calibration, confusions, groups, intervals, labels, standing
from vgg_ddp.analysis.predictions import Predictions, summarize, top_k_accuracy

MOST_CONFUSIONS = 30
MOST_ANSWERS = 10  # of what a class is taken for
MOST_IMAGES = 48  # of each list of images
TOP_K = (1, 2, 3, 5, 10)


def describe(
    predictions: Predictions,
    classes: list[str],
    named_groups: dict[str, list[str]],
    validation: Predictions | None,
    validation_reason: str,
    named_by: str = "data set",
) -> dict[str, Any]:
    """Everything that follows from the predictions on a split.

    Args:
        named_groups: groups of classes by name; where it is empty they are looked for in `validation`.
        validation: predictions on images held out from training, or None, and `validation_reason` which ones or why.
        named_by: who names the groups: "data set" or "configuration".
    """
    summary = summarize(predictions, classes)
    confusion = np.array(summary["confusion"], dtype=np.int64)
    probabilities = np.exp(predictions.log_probabilities)
    stands = standing.of_classes(confusion)
    images, correct = summary["images"], int(np.trace(confusion))
    sure = labels.surest_mistakes(predictions.label, predictions.prediction, probabilities.max(axis=1))
    doubtful = labels.doubtful_labels(predictions.label, probabilities)
    return {
        **summary,
        "accuracy_interval": intervals.wilson(correct, images),
        "per_class": [
            {
                **row,
                **_intervals(confusion, k),
                "against_others": stands.verdicts[k],
                "against_others_p_value": stands.p_values[k],
                "taken_for": confusions.cumulative(confusion, k, classes, MOST_ANSWERS),
            }
            for k, row in enumerate(summary["per_class"])
        ],
        "best": [classes[k] for k in stands.best],
        "worst": [classes[k] for k in stands.worst],
        "top_k_accuracy": {str(k): top_k_accuracy(predictions, k) for k in TOP_K if k < len(classes)},
        "confusions": [
            {"true": classes[i], "predicted": classes[j], "images": count, "share": count / int(confusion[i].sum())}
            for i, j, count in confusions.most_frequent(confusion, MOST_CONFUSIONS)
        ],
        **groups.found_or_named(confusion, classes, named_groups, named_by, validation),
        "calibration": calibration.describe(predictions, validation, validation_reason),
        "abstention": abstention.describe(predictions, validation, validation_reason),
        "surest_mistakes": predictions.sample_index[sure[:MOST_IMAGES]].tolist(),
        "doubtful_labels": {
            "images": len(doubtful),
            "sample_index": predictions.sample_index[doubtful[:MOST_IMAGES]].tolist(),
        },
    }


def _intervals(confusion: confusions.Counts, k: int) -> dict[str, intervals.Interval | None]:
    right, shown, answered = int(confusion[k, k]), int(confusion[k].sum()), int(confusion[:, k].sum())
    return {
        "accuracy_interval": intervals.wilson(right, shown),
        "precision_interval": intervals.wilson(right, answered),
        "f1_interval": intervals.f1(right, answered - right, shown - right),
    }
