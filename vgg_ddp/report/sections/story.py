"""The title of the report, the story in words, and the questions with short answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import recall, taken_for, worst_class
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation


def values(evaluation: Evaluation) -> dict[str, Any]:
    """The title, the story, and a card for each question."""
    classes, confusion, summary = evaluation.classes, evaluation.confusion, evaluation.summary
    accuracy = words.percent(summary["accuracy"])
    story = [
        words.overall_sentence(evaluation.network, evaluation.dataset, evaluation.split, confusion),
        words.extremes_sentence(classes, confusion),
    ]
    return {
        "title": f"{evaluation.network} on {evaluation.dataset}: {accuracy}",
        "network": evaluation.network,
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "accuracy": accuracy,
        "images": words.number(summary["images"]),
        "interval": words.span(summary["accuracy_interval"]),
        "story": " ".join(sentence for sentence in story if sentence),
        "cards": _cards(evaluation),
    }


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The questions to ask of any classifier, each with its answer in a word and in a sentence."""
    classes, confusion, summary = evaluation.classes, evaluation.confusion, evaluation.summary
    accuracy, worst = recall(confusion), worst_class(confusion)
    judged = [
        int(k) for k in np.argsort(-np.nan_to_num(accuracy, nan=-1.0), kind="stable") if not np.isnan(accuracy[k])
    ]

    def said(k: int) -> str:
        return f"{classes[k]} {words.percent(float(accuracy[k]))}"

    cards = []
    if worst is not None and len(judged) > 1:
        others = [said(k) for k in judged[::-1] if k not in (worst, judged[0])][:2]
        cards.append(
            {
                "question": "What is it best at, and what worst?",
                "answer": f"{said(judged[0])}\n{said(worst)}",
                "words": f"Next to worst: {words.listed(others)}." if others else "",
            }
        )
    if worst is not None:
        answers = taken_for(confusion, worst)
        share = words.percent(answers[0][1] / sum(count for _, count in answers), 0)
        cards.append(
            {
                "question": f"What is {words.named(classes[worst])} taken for, when it is missed?",
                "answer": f"{classes[answers[0][0]]} {share}",
                "words": words.worst_sentences(classes, confusion, evaluation.groups),
            }
        )
    if evaluation.groups:
        within, images = (sum(group[key] for group in evaluation.groups.values()) for key in ("within", "images"))
        said_of_groups = [words.groups_sentence(evaluation.groups), words.kind_sentence(summary)]
        cards.append(
            {
                "question": "Does it at least get the kind right?",
                "answer": words.percent(within / max(images, 1)),
                "words": " ".join(filter(None, said_of_groups)),
                "link": "groups",
                "link_words": "The groups.",
            }
        )
    calibration = summary["calibration"]
    cards.append(
        {
            "question": "Is it as sure as it should be?",
            "answer": f"{words.percent(calibration['mean_confidence'])} sure",
            "words": words.calibration_sentence({**calibration, "temperature": None}, summary["accuracy"]),
            "link": "calibration",
            "link_words": "The diagram.",
        }
    )
    counts = summary["data"]["class_counts"]
    train = counts.get("train") or next(iter(counts.values()))
    cards.append(
        {
            "question": "Is the data even?",
            "answer": "yes" if min(train) == max(train) else "nearly" if min(train) > 0.8 * max(train) else "no",
            "words": words.evenness_sentence(counts, classes),
            "link": "data",
            "link_words": "The data.",
        }
    )
    if worst is not None:
        cards.append(
            {
                "question": "Would a person have known?",
                "answer": f"{classes[worst]} or {classes[taken_for(confusion, worst)[0][0]]}?",
                "words": "Try it on the same pictures as the network.",
                "link": "quiz",
                "link_words": "Take the quiz.",
            }
        )
    return [{"link": None, **card} for card in cards]
