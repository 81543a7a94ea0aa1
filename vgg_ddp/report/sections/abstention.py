"""What it gets right where it may say that it does not know, or name several classes."""

from __future__ import annotations

from typing import Any

from vgg_ddp.report import charts, words
from vgg_ddp.report.reading import Evaluation

SHOWN_SURENESS = 0.9  # in the sentence


def values(evaluation: Evaluation) -> dict[str, Any]:
    """The sentences, the table and the curve of the section."""
    found, images = evaluation.summary["abstention"], evaluation.summary["images"]
    shown = next(row for row in found["thresholds"] if row["sureness"] == SHOWN_SURENESS)
    caption = (
        f"Accuracy of the answers that the network to {evaluation.dataset} is surest of, by the share that it answers"
    )
    line = charts.Line("accuracy", (found["curve"]["coverage"], found["curve"]["accuracy"]), "validation")
    return {
        "words": words.abstention_sentence(shown, words.images_of(images, evaluation.split)),
        "sets": words.sets_sentence(found, evaluation.classes),
        "rows": [
            {
                "sureness": words.percent(row["sureness"], 0),
                "answered": words.number(row["answered"]),
                "coverage": words.percent(row["coverage"]),
                "accuracy": words.measure(row["accuracy"]),
                "interval": words.span(row["accuracy_interval"]),
            }
            for row in found["thresholds"]
        ],
        "caption": caption,
        "svg": charts.lines(
            "accuracy of its answers", caption, [line], "accuracy", shares=True, x_label="share answered"
        ),
    }
