"""The title of the report, the story in words, and the questions with short answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis import course, intervals
from vgg_ddp.analysis.confusions import Counts, leading, recall, taken_for
from vgg_ddp.analysis.standing import FEWEST, Standing
from vgg_ddp.report import words
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections.calibration import calibration_sentence
from vgg_ddp.report.sections.data import evenness_sentence
from vgg_ddp.report.sections.matrices import groups_sentence, kind_sentence
from vgg_ddp.report.sections.per_class import kin_sentence, misses_sentence

ENDED = {"rising": "still improving", "level": "yes", "fallen": "for a while"}
RATE_AT_ITS_END = 0.1  # of the highest
NEARLY_ALL = 0.98  # of the training images: there is no more to learn from them


def values(evaluation: Evaluation, ending: course.Ending | None, *, of_best: bool, quiz: list[int]) -> dict[str, Any]:
    """The title, the story, and a card for each question.

    Args:
        ending: of the training, where it is known.
        of_best: whether the best checkpoint was evaluated.
        quiz: the two classes of its first question; empty if the page has none.
    """
    classes, confusion, summary = evaluation.classes, evaluation.confusion, evaluation.summary
    accuracy = words.percent(summary["accuracy"])
    story = [
        overall_sentence(evaluation.network, evaluation.dataset, evaluation.split, confusion),
        extremes_sentence(classes, confusion, evaluation.standing),
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
        "cards": _cards(evaluation, ending, of_best, quiz),
    }


def _top_k(evaluation: Evaluation) -> dict[str, float]:
    """How often the right class is among the first answers, by their number, the first alone included."""
    return {"1": evaluation.summary["accuracy"], **evaluation.summary["top_k_accuracy"]}


def _cards(
    evaluation: Evaluation, ending: course.Ending | None, of_best: bool, quiz: list[int]
) -> list[dict[str, Any]]:
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
            misses_sentence(classes, confusion, worst),
            "" if len(first) == 1 else "These counts are too close to say which comes first.",
            kin_sentence(classes, confusion, evaluation.groups, worst),
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
        said_of_groups = [groups_sentence(evaluation.groups), kind_sentence(summary)]
        cards.append(
            {
                "question": "Does it at least get the kind right?",
                "answer": words.percent(within / max(images, 1)),
                "words": " ".join(filter(None, said_of_groups)),
                "link": "groups",
                "link_words": "The groups.",
            }
        )
    if "2" in summary["top_k_accuracy"]:  # not of two classes: one of two answers is always right
        cards.append(
            {
                "question": "How wrong is it, when it is wrong?",
                "answer": f"{words.percent(summary['top_k_accuracy']['2'])} in two answers",
                "words": continuum_sentence(_top_k(evaluation), confusion, evaluation.groups),
            }
        )
    neighbour = summary["data"]["nearest_neighbour"]
    cards.append(
        {
            "question": "Is it better than what needs no network?",
            "answer": f"{words.percent(_without_network(confusion, neighbour))} without one",
            "words": baselines_sentence(confusion, neighbour),
        }
    )
    if ending:
        cards.append(
            {
                "question": "Did the training go well?",
                "answer": "no" if summary["warnings"] else ENDED[ending.verdict],
                "words": summary["warnings"][0] if summary["warnings"] else ending_sentence(ending, of_best),
                "link": "training",
                "link_words": "The curves.",
            }
        )
    remembered = summary.get("training_images")
    if remembered:
        cards.append(
            {
                "question": "Has it learned, or does it remember?",
                "answer": f"{words.percent(remembered['accuracy'])} of training images",
                "words": memory_sentence(remembered, summary["accuracy"], summary["images"]),
                "link": "training",
                "link_words": "The curves.",
            }
        )
    calibration = summary["calibration"]
    cards.append(
        {
            "question": "Is it as sure as it should be?",
            "answer": f"{words.percent(calibration['mean_confidence'])} sure",
            "words": calibration_sentence(
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
            "words": evenness_sentence(counts, classes),
            "link": "data",
            "link_words": "The data.",
        }
    )
    if quiz:
        cards.append(
            {
                "question": "Would a person have known?",
                "answer": f"{words.named(classes[quiz[0]])} or {words.named(classes[quiz[1]])}?",
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

    ends = [(end, said(found[0])) for end, found in (("best", standing.best), ("worst", standing.worst)) if found]
    others = [k for k in sorted(standing.unlike("worse"), key=lambda k: accuracy[k]) if k not in standing.worst[:1]]
    also = [said(k) for k in others]
    more = [*also[:3], f"{len(also) - 3} more"] if len(also) > 3 else also
    tied = set(others) <= set(standing.worst)
    why = (
        f"Also worse than the others: {words.listed(more)}{', too close to be told apart' if tied else ''}."
        if also
        else ""
    )
    return {
        "question": "What is it best at, and what worst?",
        "answer": "\n".join(one if len(ends) == 2 else f"{end}: {one}" for end, one in ends) or "nothing stands out",
        "words": why if ends else extremes_sentence(classes, evaluation.confusion, standing),
        "link": "classes",
        "link_words": "Every class.",
    }


def overall_sentence(network: str, dataset: str, split: str, confusion: Counts) -> str:
    """How many images the network names correctly."""
    total, right = int(confusion.sum()), int(np.trace(confusion))
    of = f"Of {words.images_of(total, split)} of {dataset}, {network} names"
    if right in (0, total):
        return f"{of} {'none' if right == 0 else 'every one'} correctly."
    return f"{of} {words.number(right)} correctly: {words.percent(right / total)}."


def extremes_sentence(classes: list[str], confusion: Counts, standing: Standing) -> str:
    """The classes that stand out as best and worst, and which had no images, or too few, to be judged by."""
    accuracy = recall(confusion)
    judged = np.flatnonzero(~np.isnan(accuracy))
    unjudged = _unjudged(classes, standing)
    if len(judged) == 0:
        return unjudged
    high, low = float(accuracy[judged].max()), float(accuracy[judged].min())
    if high == low:
        which = "The only class with images" if len(judged) == 1 else "Every class"
        said = f"{which} is at {words.percent(high)}."
    elif not (standing.best or standing.worst):
        said = (
            "No class is recognised better or worse than the others by more than chance: "
            f"they lie between {words.percent(low)} and {words.percent(high)}."
        )
    else:
        ends = [
            _end(classes, accuracy, ks, end) for ks, end in ((standing.best, "best"), (standing.worst, "worst")) if ks
        ]
        missing = "" if len(ends) == 2 else f"; no class stands out as {'worst' if standing.best else 'best'}"
        said = f"It recognises {' and '.join(ends)}{missing}."
    return f"{said} {unjudged}".strip()


def _end(classes: list[str], accuracy: NDArray[np.float64], alike: list[int], end: str) -> str:
    """The best or the worst class, and those that are too close to be told from it."""
    first, *others = alike
    close = words.listed([words.named(classes[k]) for k in others]) if len(others) <= 2 else f"{len(others)} more"
    verb = "is" if len(others) == 1 else "are"
    tied = f"; {close} {verb} too close to be told from it" if others else ""
    return f"{words.named(classes[first])} {end} ({words.percent(float(accuracy[first]))}{tied})"


def _unjudged(classes: list[str], standing: Standing) -> str:
    """The classes that no image shows, and those that too few show."""
    said = []
    for verdict in ("no images", "too few images"):
        names = [words.named(classes[k]) for k in standing.unlike(verdict)]
        some = names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]
        if names and verdict == "no images":
            said.append(f"No image shows {words.listed(some, 'or')}, so nothing is known there.")
        elif names:
            said.append(f"Fewer than {FEWEST} images show {words.listed(some)}: too few to call a class best or worst.")
    return " ".join(said)


def continuum_sentence(top_k: dict[str, float], confusion: Counts, groups: dict[str, dict[str, Any]]) -> str:
    """How wrong it is when it is wrong: how often the class is among the first answers, and how often the kind is right."""
    counts = {"2": "two", "3": "three"}
    near = [f"{words.percent(top_k[k])} among its first {counts[k]}" for k in counts if k in top_k]
    said = f"The right class is its first answer for {words.percent(top_k['1'])} of the images"
    said += f", and {' and '.join(near)}." if near else "."
    kept = sum(
        group["within"] - group["correct"] for group in groups.values()
    )  # a class of no group has no kind to keep
    total, right = int(confusion.sum()), int(np.trace(confusion))
    mistakes = total - right
    if not groups or not mistakes:
        return said
    better = words.percent((right + kept / 2) / total)
    if mistakes == 1:
        keeps = f"keeps the kind: counted as half a mistake, it makes the accuracy {better}"
        return f"{said} Its one mistake {keeps if kept else 'does not keep the kind'}."
    return (
        f"{said} Of its {words.number(mistakes)} mistakes {words.percent(kept / mistakes, 0)} keep the kind: counted as "
        f"half a mistake each, they make the accuracy {better}."
    )


def _without_network(confusion: Counts, neighbour: dict[str, int]) -> float:
    """The highest accuracy of what needs no network; guessing is never better than always the most frequent class."""
    most = int(confusion.sum(axis=1).max(initial=0)) / max(int(confusion.sum()), 1)
    return max(most, neighbour["correct"] / max(neighbour["images"], 1))


def baselines_sentence(confusion: Counts, neighbour: dict[str, int]) -> str:
    """What needs no network: guessing, always the most frequent class, the most alike training image."""
    images = int(confusion.sum())
    most = int(confusion.sum(axis=1).max(initial=0))
    said = (
        f"Guessing is right for {words.percent(1 / len(confusion))}, always answering the most frequent class for "
        f"{words.percent(most / max(images, 1))}"
    )
    if not neighbour["images"]:
        return f"{said}."
    some = neighbour["images"] != images
    on = f" on {words.number(neighbour['images'])} of {words.images_of(images, 'test')}" if some else ""
    return (
        f"{said}, the answer of the most alike of {words.images_of(neighbour['training_images'], 'training')} (8 x 8 grey "
        f"pixels) for {words.percent(neighbour['correct'] / neighbour['images'])}{on}; the network for "
        f"{words.percent(int(np.trace(confusion)) / images)} of the {words.images_of(images, 'test')}."
    )


def ending_sentence(ending: course.Ending, of_best: bool) -> str:
    """Whether the validation accuracy still rose at the end of the training, had levelled off, or had fallen; `of_best`: the
    page is of the best checkpoint already.
    """
    last = f"{words.percent(ending.last)} after epoch {_epoch(ending.last_epoch)}"
    if ending.verdict == "fallen":
        taken = "This page is of" if of_best else "evaluate.checkpoint=best takes"
        return (
            f"The validation accuracy was best, {words.percent(ending.best)}, after epoch "
            f"{_epoch(ending.best_epoch)}, and is {last}: less by more than chance. {taken} the network of that epoch."
        )
    before = f"{words.percent(ending.before)} after epoch {_epoch(ending.before_epoch)}"
    if ending.verdict == "level":
        return f"The validation accuracy was {before} and {last}, no more than chance apart: it had levelled off."
    rate = (
        " The learning rate had fallen to its end by then, so begin anew." if ending.rate_left < RATE_AT_ITS_END else ""
    )
    return f"The validation accuracy rose from {before} to {last}: with more epochs it may be better.{rate}"


def _epoch(epoch: float) -> str:
    return f"{round(epoch, 2):g}"


def memory_sentence(remembered: dict[str, Any], test_accuracy: float, test_images: int) -> str:
    """Whether it has learned or remembers: its accuracy on images that it was trained on, beside that on others."""
    seen, images = remembered["accuracy"], remembered["images"]
    gap = seen - test_accuracy
    low, high = intervals.difference((round(seen * images), images), (round(test_accuracy * test_images), test_images))
    said = (
        f"With the evaluated weights it names {words.percent(seen)} of {words.images_of(images, 'training')}, without "
        f"augmentation, and {words.percent(test_accuracy)} of {words.images_of(test_images, 'test')}: {words.points(gap)} "
        f"points (95{words.NBSP}% interval {words.points(low)} to {words.points(high)})."
    )
    if high < 0:
        return f"{said} It knows new images better than those it was trained on, as these are labelled: no sign of overfitting."
    if low <= 0:
        return f"{said} That is no more than chance: no sign of overfitting."
    more = " Even of its training images it misses some: it may learn more yet." if seen < NEARLY_ALL else ""
    return f"{said} It knows the images that it was trained on better than new ones: it overfits by that much.{more}"
