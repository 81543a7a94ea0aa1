"""The report of one run: takes what the run left behind and fills the template with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_ddp.analysis.confusions import Counts, cumulative, most_frequent, recall, taken_for, worst_class
from vgg_ddp.data.dataset import Dataset, Split
from vgg_ddp.report import charts, details, thumbnails, training, words
from vgg_ddp.report.reading import Evaluation, read_evaluation
from vgg_ddp.report.rendering import embedded, render
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import last_written, read_rows

TILES = 9  # pictures in each grid
LARGEST_NUMBERED_MATRIX = 20  # classes; beyond it the confusion matrix is a picture and a table
MOST_CONFUSIONS = 20
MOST_ANSWERS = 10  # rows of what the worst class is taken for
MOST_DOUBTFUL = 24  # pictures of doubtful labels
MOST_TWICE = 16  # pairs of near-duplicates
STRONGEST_CELL = 0.7  # above this opacity a number in a cell of the confusion matrix would be hard to read

SECTIONS = [
    ("story", "In short"),
    ("training", "Training"),
    ("pictures", "Pictures"),
    ("classes", "Classes"),
    ("confusion", "Confusions"),
    ("worst", "Worst class"),
    ("quiz", "Quiz"),
    ("groups", "Groups"),
    ("calibration", "Calibration"),
    ("data", "Data"),
    ("speed", "Speed"),
    ("configuration", "Configuration"),
    ("environment", "Environment"),
]


@dataclass(frozen=True)
class Tile:
    """One picture of a grid; `source` is None where the picture cannot be had."""

    source: str | None
    pixelated: bool
    index: int
    name: str
    true: str
    predicted: str
    confidence: str
    right: bool


def write_report(run: Path, dataset: Dataset | None) -> Path:
    """Write RUN/report/index.html, one file that needs nothing else, and return its path.

    Args:
        run: the run's directory, with an evaluation in it.
        dataset: what it was evaluated on; None where that is no longer there, which the page then says.

    Raises:
        UserError: the run has no evaluation, or one of its files is damaged, or the page cannot be written.
    """
    run = Path(run)
    evaluation = read_evaluation(run)
    log = read_rows(run / "metrics.jsonl")
    metrics = last_written(log.rows)
    environment = read_json(run / "environment.json") or {}
    trained = read_json(run / "summary.json") or {}
    config = run / "config.yaml"
    split = dataset.split(evaluation.summary["split"]) if dataset else None
    data, sheets = details.describe(evaluation, split)
    values = {
        **_about(evaluation),
        "curves_drawn": training.curves(metrics, evaluation.dataset),
        "validated": any(row["split"] == "validation" for row in metrics),
        "unreadable_lines": log.cut_off,
        **_pictures(evaluation, split),
        **_classes(evaluation, metrics),
        "quiz": bool(data["quiz"]),
        **_groups(evaluation),
        "calibration": _calibration(evaluation),
        "data": _data(evaluation, dataset),
        "notes": [words.shown(str(note)) for note in environment.get("fallbacks", [])],
        "time": training.where_time_went(trained),
        "numbers": training.numbers(evaluation.summary, trained),
        "config": words.shown_text(config.read_text("utf-8", errors="replace")) if config.exists() else None,
        "environment": training.flat(
            {**environment, "evaluated checkpoint": evaluation.summary.get("checkpoint_sha256")}
        ),
        "details": embedded(data),
        "sheets": sheets,
        "sections": SECTIONS,
    }
    return render("run.html.j2", values, run / "report" / "index.html")


def _about(evaluation: Evaluation) -> dict[str, Any]:
    """The title and the story in words."""
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
        sentences = [
            words.misses_sentence(classes, confusion),
            words.kin_sentence(classes, confusion, evaluation.groups),
        ]
        question = f"What is {words.named(classes[worst])} taken for, when it is missed?"
        cards.append(
            {"question": question, "answer": f"{classes[answers[0][0]]} {share}", "words": " ".join(sentences).strip()}
        )
    if evaluation.groups:
        within, images = (sum(group[key] for group in evaluation.groups.values()) for key in ("within", "images"))
        cards.append(
            {
                "question": "Does it at least get the kind right?",
                "answer": words.percent(within / max(images, 1)),
                "words": words.groups_sentence(evaluation.groups),
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
        other = taken_for(confusion, worst)[0][0]
        cards.append(
            {
                "question": "Would a person have known?",
                "answer": f"{classes[worst]} or {classes[other]}?",
                "words": "Try it on the same pictures as the network.",
                "link": "quiz",
                "link_words": "Take the quiz.",
            }
        )
    return [{"link": None, **card} for card in cards]


def _pictures(evaluation: Evaluation, split: Split | None) -> dict[str, Any]:
    """Three grids of pictures: drawn at random, the surest mistakes, and misses of the worst class."""
    wrong = np.flatnonzero(evaluation.prediction != evaluation.label)
    worst = worst_class(evaluation.confusion)
    surest = evaluation.summary["surest_mistakes"][:TILES]
    grids: dict[str, list[int]] = {
        "samples": _draw(np.arange(len(evaluation.label))),
        "mistakes": [evaluation.position(sample) for sample in surest],
        "worst_tiles": _draw(wrong[evaluation.label[wrong] == worst]),
    }
    right = evaluation.prediction == evaluation.label
    return {
        "have_images": split is not None,
        "sureness": words.sureness_sentence(evaluation.confidence, right),
        **{name: [tile(evaluation, split, k) for k in grid] for name, grid in grids.items()},
    }


def _draw(positions: npt.NDArray[np.int64]) -> list[int]:
    """Nine at random, the same ones every time, so that mistakes appear at their real rate."""
    return np.random.default_rng(0).choice(positions, min(TILES, len(positions)), replace=False).tolist()


def tile(evaluation: Evaluation, split: Split | None, k: int) -> Tile:
    """The picture at position `k` of the evaluation."""
    label, prediction, sample = (int(a[k]) for a in (evaluation.label, evaluation.prediction, evaluation.sample_index))
    pixels = None if split is None else split.decode(sample)
    return Tile(
        source=None if pixels is None else thumbnails.png(pixels),
        pixelated=pixels is not None and max(pixels.shape[:2]) <= thumbnails.SMOOTH_ABOVE,
        index=sample,
        name=f"image {sample}" if split is None else words.shortened(split.key(sample)),
        true=evaluation.classes[label],
        predicted=evaluation.classes[prediction],
        confidence=words.percent(float(evaluation.confidence[k]), 0),
        right=label == prediction,
    )


def _classes(evaluation: Evaluation, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy per class, the confusion matrix, and the worst class."""
    classes, confusion = evaluation.classes, evaluation.confusion
    totals, accuracy = confusion.sum(axis=1), recall(confusion)
    ranked = np.argsort(-np.nan_to_num(accuracy, nan=-1.0), kind="stable").tolist()
    rows = []
    for k in ranked:
        said = evaluation.summary["per_class"][k]
        rows.append(
            {
                "name": classes[k],
                "share": said["accuracy"],
                "ends": said["accuracy_interval"],
                "accuracy": "no images" if said["accuracy"] is None else words.percent(said["accuracy"]),
                "interval": words.span(said["accuracy_interval"]),
                "correct": words.number(int(confusion[k, k])),
                "images": words.number(int(totals[k])),
                "precision": _measure(said["precision"]),
                "precision_interval": words.span(said["precision_interval"]),
                "f1": _measure(said["f1"]),
                "f1_interval": words.span(said["f1_interval"]),
            }
        )
    ended_worst = [k for k in ranked[::-1] if totals[k]]
    return {
        "per_class": rows,
        "class_curves": training.classes_over_epochs(metrics, classes, ended_worst),
        **_confusion(evaluation),
        **_worst(evaluation),
    }


def _measure(share: float | None) -> str:
    return "\u2013" if share is None or np.isnan(share) else words.percent(share)


def cell_opacity(confusion: Counts) -> npt.NDArray[np.float64]:
    """How strongly to colour each cell of a confusion matrix [true, predicted], from 0 to `STRONGEST_CELL`.

    The diagonal is coloured by its share of the row; mistakes by their share against the most frequent mistake, so
    that they can be told apart however rare they are.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    mistakes = shares * ~np.eye(len(shares), dtype=bool)
    strength: npt.NDArray[np.float64] = np.diag(np.diag(shares)) + mistakes / max(mistakes.max(initial=0.0), 0.05)
    return STRONGEST_CELL * strength


def _matrix(names: Sequence[str], confusion: Counts) -> list[dict[str, Any]]:
    """Rows of a confusion matrix as percentages of each row."""
    totals, opacity = confusion.sum(axis=1), cell_opacity(confusion)
    return [
        {
            "name": names[i],
            "cells": [
                {
                    "text": words.cell(float(confusion[i, j] / totals[i])) if totals[i] else "",
                    "opacity": round(float(opacity[i, j]), 3),
                    "title": f"{names[i]} taken for {names[j]}: {words.number(int(confusion[i, j]))}",
                }
                for j in range(len(names))
            ],
        }
        for i in range(len(names))
    ]


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    classes, confusion = evaluation.classes, evaluation.confusion
    totals = confusion.sum(axis=1)
    frequent = [
        {
            "i": i,
            "j": j,
            "true": classes[i],
            "predicted": classes[j],
            "images": words.number(count),
            "accuracy": words.percent(float(count / totals[i])),
            "share": float(count / totals[i]),
        }
        for i, j, count in most_frequent(confusion, MOST_CONFUSIONS if len(classes) > LARGEST_NUMBERED_MATRIX else 8)
    ]
    numbered = len(classes) <= LARGEST_NUMBERED_MATRIX
    return {"classes": classes, "matrix": _matrix(classes, confusion) if numbered else [], "frequent": frequent}


def _worst(evaluation: Evaluation) -> dict[str, Any]:
    classes, confusion = evaluation.classes, evaluation.confusion
    worst = worst_class(confusion)
    if worst is None:
        return {"worst": None}
    answers = taken_for(confusion, worst)
    misses = sum(count for _, count in answers)
    rows = cumulative(confusion, worst, classes, MOST_ANSWERS)
    if len(answers) > MOST_ANSWERS:
        rest = misses - sum(row["images"] for row in rows)
        others = {"name": f"{len(answers) - MOST_ANSWERS} other classes", "images": rest, "share": rest / misses}
        rows.append({**others, "together": 1.0})
    images = int(confusion[worst].sum())
    sentences = [
        words.misses_sentence(classes, confusion),
        words.kin_sentence(classes, confusion, evaluation.groups),
    ]
    return {
        "worst": {
            "name": classes[worst],
            "words": " ".join(sentence for sentence in sentences if sentence),
            "misses": words.number(misses),
            "images": words.number(images),
            "answers": [
                {
                    "name": row["name"],
                    "images": words.number(row["images"]),
                    "share": row["share"],
                    "accuracy": words.percent(row["share"]),
                    "together": words.percent(row["together"]),
                }
                for row in rows
            ],
        },
        "cumulative": [
            {"name": name, "answers": words.answers(cumulative(confusion, k, classes, MOST_ANSWERS))}
            for k, name in enumerate(classes)
        ],
    }


def _groups(evaluation: Evaluation) -> dict[str, Any]:
    """How often images are taken for a class of their own group."""
    groups = evaluation.groups
    if not groups:
        return {"groups": []}
    found = evaluation.summary["groups_from"] == "confusions"
    origin = (
        "The data set names no groups; these were found by clustering the confusions: classes that the network takes for "
        "one another."
        if found
        else "The groups are the data set's own."
    )
    ranked = sorted(groups, key=lambda name: -(groups[name]["within_accuracy"] or 0))
    rows = [
        {
            "name": name,
            "members": words.listed(groups[name]["classes"]),
            "share": groups[name]["within_accuracy"] or 0,
            "right_share": groups[name]["accuracy"] or 0,
            "accuracy": _measure(groups[name]["within_accuracy"]),
            "interval": words.span(groups[name]["within_interval"]),
            "right": _measure(groups[name]["accuracy"]),
            "images": words.number(groups[name]["images"]),
        }
        for name in ranked
    ]
    confusion = np.array([[groups[i]["taken_for"][j] for j in ranked] for i in ranked], dtype=np.int64)
    return {
        "groups": rows,
        "groups_words": f"{words.groups_sentence(groups)} {origin}",
        "group_matrix": _matrix(ranked, confusion) if len(ranked) <= LARGEST_NUMBERED_MATRIX else [],
    }


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    """The reliability diagrams and what they say."""
    calibration, dataset = evaluation.summary["calibration"], evaluation.dataset
    measured = [("As it is", calibration)]
    if calibration["scaled"]:
        measured.append((f"With temperature {calibration['temperature']:.2f}", calibration["scaled"]))
    drawn = []
    for name, values in measured:
        error = words.percent(values["expected_calibration_error"])
        caption = f"{name}, on {dataset}: calibration error (ECE) {error}, loss {words.number(values['loss'], 3)}"
        drawn.append({"caption": caption, "svg": charts.reliability(caption, values["bins"])})
    unfitted = f"No temperature was fitted: {calibration['temperature_from']}."
    return {
        "words": words.calibration_sentence(calibration, evaluation.summary["accuracy"]),
        "charts": drawn,
        "note": unfitted if calibration["temperature"] is None else "",
    }


def _data(evaluation: Evaluation, dataset: Dataset | None) -> dict[str, Any]:
    """Class counts, doubtful labels, and images that are there twice."""
    found, classes = evaluation.summary["data"], evaluation.classes
    counts = found["class_counts"]
    first = counts.get("train") or next(iter(counts.values()))
    split = dataset.split(evaluation.summary["split"]) if dataset else None
    doubtful = evaluation.summary["doubtful_labels"]
    return {
        "evenness": words.evenness_sentence(counts, classes),
        "notes": [words.shown(note) for note in found["notes"]],
        "splits": list(counts),
        "rows": [
            {
                "name": name,
                "share": first[k] / max(*first, 1),
                "counts": [words.number(of_split[k]) for of_split in counts.values()],
            }
            for k, name in enumerate(classes)
        ],
        "doubtful_words": words.doubtful_sentence(doubtful["images"], evaluation.split),
        "doubtful": [
            tile(evaluation, split, evaluation.position(sample)) for sample in doubtful["sample_index"][:MOST_DOUBTFUL]
        ],
        "twice_words": words.duplicates_sentence(found["near_duplicates"]),
        "twice": _twice(evaluation, dataset) if dataset else [],
    }


def _twice(evaluation: Evaluation, dataset: Dataset) -> list[dict[str, Any]]:
    """The near-duplicates as pairs of pictures: those in the training images, then those among the test images."""
    shown = []
    for other in ("train", "test"):
        for pair in evaluation.summary["data"]["near_duplicates"][other]["pairs"]:
            images, labels = [], []
            for split, sample in ((dataset.split("test"), pair[0]), (dataset.split(other), pair[1])):
                pixels = split.decode(sample)
                label = evaluation.classes[int(split.labels[sample])]
                labels.append(label)
                images.append(
                    {
                        "source": thumbnails.png(pixels),
                        "pixelated": max(pixels.shape[:2]) <= thumbnails.SMOOTH_ABOVE,
                        "alt": f"{split.name} image {sample} of {evaluation.dataset}: {label}",
                    }
                )
            differ = labels[0] != labels[1]
            said = f"{labels[0]}, but {labels[1]} in {other}" if differ else f"{labels[0]}, also in {other}"
            shown.append({"images": images, "differ": differ, "words": said})
    return sorted(shown, key=lambda pair: not pair["differ"])[:MOST_TWICE]
