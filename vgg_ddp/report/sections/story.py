"""The title of the report, the story in words, and the questions with short answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import leading, recall, taken_for
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation


def values(evaluation: Evaluation) -> dict[str, Any]:
    """The title, the story, and a card for each question."""
    classes, confusion, summary = evaluation.classes, evaluation.confusion, evaluation.summary
    accuracy = words.percent(summary["accuracy"])
    story = [
        words.overall_sentence(evaluation.network, evaluation.dataset, evaluation.split, confusion),
        words.extremes_sentence(classes, confusion, evaluation.standing),
    ]
    return {
        "title": f"{evaluation.network} on {evaluation.dataset}: {accuracy}",
        "network": evaluation.network,
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "accuracy": accuracy,
        "images": words.number(summary["images"]),
        "interval": words.span(summary["accuracy_interval"]),
        "top_k": [
            {"first": k, "share": share, "accuracy": words.percent(share)} for k, share in _top_k(evaluation).items()
        ],
        "story": " ".join(sentence for sentence in story if sentence),
        "cards": _cards(evaluation),
    }


def _top_k(evaluation: Evaluation) -> dict[str, float]:
    """How often the right class is among the first answers, by their number, the first alone included."""
    return {"1": evaluation.summary["accuracy"], **evaluation.summary["top_k_accuracy"]}


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The questions to ask of any classifier, each with its answer in a word and in a sentence."""
    classes, confusion, summary = evaluation.classes, evaluation.confusion, evaluation.summary
    worst = evaluation.looked_at
    cards = []
    if worst is not None and np.count_nonzero(confusion.sum(axis=1)) > 1:
        cards.append(_extremes_card(evaluation))
    if worst is not None:
        answers = taken_for(confusion, worst)
        misses, first = sum(count for _, count in answers), leading(answers)
        share = words.percent(answers[0][1] / misses, 0)
        several = words.listed([words.quoted(classes[k]) for k in first], "or") if len(first) <= 3 else "this and that"
        said = [
            words.misses_sentence(classes, confusion, worst),
            "" if len(first) == 1 else "These counts are too close to say which comes first.",
            words.kin_sentence(classes, confusion, evaluation.groups, worst),
        ]
        cards.append(
            {
                "question": f"What is {words.named(classes[worst])} taken for, when it is missed?",
                "answer": f"{words.quoted(classes[first[0]])} {share}" if len(first) == 1 else several,
                "words": " ".join(filter(None, said)),
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
    cards.append(
        {
            "question": "How wrong is it, when it is wrong?",
            "answer": f"{words.percent(summary['top_k_accuracy'].get('2', summary['accuracy']))} in two answers",
            "words": words.continuum_sentence(_top_k(evaluation), confusion, evaluation.groups),
        }
    )
    neighbour = summary["data"]["nearest_neighbour"]
    cards.append(
        {
            "question": "Is it better than what needs no network?",
            "answer": f"{words.percent(neighbour['correct'] / max(neighbour['images'], 1))} without one",
            "words": words.baselines_sentence(confusion, neighbour),
        }
    )
    remembered = summary.get("training_images")
    if remembered:
        cards.append(
            {
                "question": "Has it learned, or does it remember?",
                "answer": f"{words.percent(remembered['accuracy'])} of training images",
                "words": words.memory_sentence(remembered, summary["accuracy"], summary["images"]),
                "link": "training",
                "link_words": "The curves.",
            }
        )
    calibration = summary["calibration"]
    cards.append(
        {
            "question": "Is it as sure as it should be?",
            "answer": f"{words.percent(calibration['mean_confidence'])} sure",
            "words": words.calibration_sentence(
                calibration, summary["accuracy"], words.images_of(summary["images"], evaluation.split)
            ),
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
                "answer": f"{words.named(classes[worst])} or {words.named(classes[taken_for(confusion, worst)[0][0]])}?",
                "words": "Try it on the same pictures as the network.",
                "link": "quiz",
                "link_words": "Take the quiz.",
            }
        )
    return [{"link": None, **card} for card in cards]


def _extremes_card(evaluation: Evaluation) -> dict[str, Any]:
    """What stands out as best and worst, and what else is worse than the others."""
    classes, accuracy, standing = evaluation.classes, recall(evaluation.confusion), evaluation.standing

    def said(k: int) -> str:
        return f"{words.quoted(classes[k])} {words.percent(float(accuracy[k]))}"

    ends = [said(found[0]) for found in (standing.best, standing.worst) if found]
    also = [said(k) for k in sorted(standing.unlike("worse"), key=lambda k: accuracy[k]) if k not in standing.worst[:1]]
    more = [*also[:3], f"{len(also) - 3} more"] if len(also) > 3 else also
    tied = len(standing.worst) > 1
    why = (
        f"Also worse than the others: {words.listed(more)}{', too close to be told apart' if tied else ''}."
        if also
        else ""
    )
    return {
        "question": "What is it best at, and what worst?",
        "answer": "\n".join(ends) or "nothing stands out",
        "words": why if ends else words.extremes_sentence(classes, evaluation.confusion, standing),
        "link": "classes",
        "link_words": "Every class.",
    }
