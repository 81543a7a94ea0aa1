"""Takes what a run left behind and fills the report's template with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from vgg_ddp.errors import UserError
from vgg_ddp.report import figures, words
from vgg_ddp.report.reading import Evaluation, read_evaluation, read_json, read_metrics

Images = Callable[[list[int]], list[npt.NDArray[np.uint8]]]

TILES = 9  # pictures in each grid
LARGEST_NUMBERED_MATRIX = 20  # classes; beyond it the confusion matrix is a picture and a table
MOST_CONFUSIONS = 20
MOST_ANSWERS = 10  # rows of what the worst class is taken for
STEP_CURVE_UP_TO = 10  # epochs; with more, the epoch means say enough
ENLARGE_WITHOUT_BLUR = 64  # pixels; larger pictures are smoothed when scaled


@dataclass(frozen=True)
class Tile:
    """One picture of a grid; `source` is None where the picture cannot be had."""

    source: str | None
    pixelated: bool
    index: int
    true: str
    predicted: str
    confidence: str
    right: bool


def write_report(run: Path, images: Images | None) -> Path:
    """Write RUN/report/index.html, one file that needs nothing else, and return its path.

    Args:
        run: the run's directory, with an evaluation in it.
        images: maps sample indices of the evaluated split to uint8 arrays [height, width, 3]; None where the data set
            is no longer there, which the page then says.

    Raises:
        UserError: the run has no evaluation, or one of its files is damaged, or the page cannot be written.
    """
    run = Path(run)
    evaluation = read_evaluation(run)
    metrics, unreadable_lines = read_metrics(run / "metrics.jsonl")
    environment = read_json(run / "environment.json") or {}
    config = run / "config.yaml"
    page = _template().render(
        **_about(evaluation),
        **_training(metrics, evaluation, unreadable_lines),
        **_pictures(evaluation, images),
        **_classes(evaluation),
        notes=[words.shown(str(note)) for note in environment.get("fallbacks", [])],
        numbers=_numbers(evaluation.summary, read_json(run / "summary.json") or {}),
        config=config.read_text(encoding="utf-8", errors="replace") if config.exists() else None,
        environment=_flat({**environment, "evaluated checkpoint": evaluation.summary.get("checkpoint_sha256")}),
    )
    return _write(page, run / "report" / "index.html")


def _about(evaluation: Evaluation) -> dict[str, Any]:
    """The title and the story in words."""
    classes, confusion, groups = evaluation.classes, evaluation.confusion, evaluation.groups
    shares = words.group_shares(classes, confusion, groups)
    story = [
        words.overall_sentence(evaluation.network, evaluation.dataset, evaluation.split, confusion),
        words.extremes_sentence(classes, confusion),
        words.misses_sentence(classes, confusion),
        words.groups_sentence(shares),
    ]
    return {
        "network": evaluation.network,
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "accuracy": words.percent(evaluation.summary["accuracy"]),
        "story": " ".join(sentence for sentence in story if sentence),
        "groups": [
            {
                "name": name,
                "images": words.number(count),
                "accuracy": words.percent(kept / count),
                "share": kept / count,
            }
            for name, count, kept in shares
        ],
    }


def _training(metrics: list[dict[str, Any]], evaluation: Evaluation, unreadable_lines: int) -> dict[str, Any]:
    """The curves, each with an alternative text."""
    dataset = evaluation.dataset

    def series(split: str, scope: str, value: str) -> figures.Series:
        rows = [row for row in metrics if (row["split"], row["scope"]) == (split, scope) and row.get(value) is not None]
        return [float(row["epoch"]) for row in rows], [float(row[value]) for row in rows]

    curves = []
    for name, shares in (("loss", False), ("accuracy", True)):
        train, validation = series("train", "epoch", name), series("validation", "epoch", name)
        steps = series("train", "steps", name) if len(train[0]) <= STEP_CURVE_UP_TO else ([], [])
        if not any(len(epochs) for epochs, _ in (train, validation, steps)):
            continue
        ends = [
            f"{split} {_ends(values, shares)}"
            for split, values in (("training", train[1]), ("validation", validation[1]))
            if values
        ]
        when = "first to last epoch" if len(train[0]) > 1 else "after one epoch"
        caption = f"{name.capitalize()} on {dataset}" + (f", {when}: {'; '.join(ends)}" if ends else "")
        svg = figures.curves_svg(name, caption, figures.Curves(train, validation, steps), name, shares)
        curves.append({"svg": svg, "caption": caption})
    rates = series("train", "steps", "lr")
    if rates[0]:
        caption = f"Learning rate on {dataset}: at most {max(rates[1]):.3g}, at the end {rates[1][-1]:.3g}"
        curves.append({"svg": figures.learning_rate_svg("learning-rate", caption, rates), "caption": caption})
    return {
        "curves": curves,
        "unreadable_lines": unreadable_lines,
        "validated": any(row["split"] == "validation" for row in metrics),
    }


def _ends(values: list[float], shares: bool) -> str:
    said = [words.percent(value) if shares else words.number(value, 3) for value in (values[0], values[-1])]
    return " to ".join(said if len(values) > 1 else said[:1])


def _pictures(evaluation: Evaluation, images: Images | None) -> dict[str, Any]:
    """Three grids of pictures: drawn at random, the surest mistakes, and misses of the worst class."""
    wrong = np.flatnonzero(evaluation.prediction != evaluation.label)
    surest = wrong[np.argsort(-np.nan_to_num(evaluation.confidence[wrong], nan=-1.0), kind="stable")]
    worst = words.worst_class(evaluation.confusion)
    grids = {
        "samples": _draw(np.arange(len(evaluation.label))),
        "mistakes": surest[:TILES],
        "worst_tiles": _draw(wrong[evaluation.label[wrong] == worst]),
    }
    positions = np.unique(np.concatenate(list(grids.values())))
    indices = evaluation.sample_index[positions].tolist()
    found = dict(zip(positions.tolist(), images(indices), strict=True)) if images and indices else {}
    right = evaluation.prediction == evaluation.label
    return {
        "have_images": images is not None,
        "sureness": words.sureness_sentence(evaluation.confidence, right),
        **{name: [_tile(evaluation, k, found.get(k)) for k in grid.tolist()] for name, grid in grids.items()},
    }


def _draw(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Nine at random, the same ones every time, so that mistakes appear at their real rate."""
    return np.random.default_rng(0).choice(positions, min(TILES, len(positions)), replace=False)


def _tile(evaluation: Evaluation, k: int, pixels: npt.NDArray[np.uint8] | None) -> Tile:
    label, prediction = int(evaluation.label[k]), int(evaluation.prediction[k])
    return Tile(
        source=None if pixels is None else figures.picture(pixels),
        pixelated=pixels is not None and max(pixels.shape[:2]) <= ENLARGE_WITHOUT_BLUR,
        index=int(evaluation.sample_index[k]),
        true=evaluation.classes[label],
        predicted=evaluation.classes[prediction],
        confidence=words.percent(float(evaluation.confidence[k]), 0),
        right=label == prediction,
    )


def _classes(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy per class, the confusion matrix, and the worst class."""
    classes, confusion = evaluation.classes, evaluation.confusion
    totals, accuracy = confusion.sum(axis=1), words.recall(confusion)
    rows = [
        {
            "name": classes[k],
            "share": None if np.isnan(accuracy[k]) else float(accuracy[k]),
            "accuracy": "no images" if np.isnan(accuracy[k]) else words.percent(float(accuracy[k])),
            "correct": words.number(int(confusion[k, k])),
            "images": words.number(int(totals[k])),
            "precision": _measure(evaluation.summary["per_class"][k].get("precision")),
            "f1": _measure(evaluation.summary["per_class"][k].get("f1")),
        }
        for k in np.argsort(-np.nan_to_num(accuracy, nan=-1.0), kind="stable")
    ]
    return {"per_class": rows, **_confusion(evaluation), **_worst(classes, confusion)}


def _measure(share: float | None) -> str:
    return "\u2013" if share is None or np.isnan(share) else words.percent(share)


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    classes, confusion = evaluation.classes, evaluation.confusion
    totals, opacity = confusion.sum(axis=1), figures.cell_opacity(confusion)
    if len(classes) <= LARGEST_NUMBERED_MATRIX:
        matrix = [
            {
                "name": classes[i],
                "cells": [
                    {
                        "text": words.cell(float(confusion[i, j] / totals[i])) if totals[i] else "",
                        "opacity": round(float(opacity[i, j]), 3),
                        "title": f"{classes[i]} taken for {classes[j]}: {words.number(int(confusion[i, j]))}",
                    }
                    for j in range(len(classes))
                ],
            }
            for i in range(len(classes))
        ]
        return {"classes": classes, "matrix": matrix, "confusion_picture": None, "frequent": []}
    mistakes = confusion * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_CONFUSIONS]
    frequent = [
        {
            "true": classes[i],
            "predicted": classes[j],
            "images": words.number(int(mistakes[i, j])),
            "accuracy": words.percent(float(mistakes[i, j] / totals[i])),
            "share": float(mistakes[i, j] / totals[i]),
        }
        for i, j in zip(*np.unravel_index(order, mistakes.shape), strict=True)
        if mistakes[i, j]
    ]
    alt = f"Confusion matrix of {len(classes)} classes of {evaluation.dataset}; the most frequent confusions follow"
    return {
        "classes": classes,
        "matrix": [],
        "confusion_picture": figures.confusion_svg("confusion-matrix", alt, opacity),
        "frequent": frequent,
    }


def _worst(classes: list[str], confusion: words.Counts) -> dict[str, Any]:
    worst = words.worst_class(confusion)
    if worst is None:
        return {"worst": None}
    answers = words.taken_for(confusion, worst)
    misses = sum(count for _, count in answers)
    rows, together = [], 0
    for name, count in [(classes[k], count) for k, count in answers[:MOST_ANSWERS]]:
        together += count
        rows.append(_answer(name, count, together, misses))
    if len(answers) > MOST_ANSWERS:
        rows.append(_answer(f"{len(answers) - MOST_ANSWERS} other classes", misses - together, misses, misses))
    images = int(confusion[worst].sum())
    return {
        "worst": {
            "name": classes[worst],
            "misses": words.number(misses),
            "images": words.number(images),
            "accuracy": words.percent(1 - misses / images),
            "answers": rows,
        }
    }


def _answer(name: str, count: int, together: int, misses: int) -> dict[str, Any]:
    return {
        "name": name,
        "images": words.number(count),
        "share": count / misses,
        "accuracy": words.percent(count / misses),
        "together": words.percent(together / misses),
    }


def _numbers(evaluation: dict[str, Any], training: dict[str, Any]) -> list[tuple[str, str]]:
    """The small table of figures: what was measured, and its value in words."""
    top5 = evaluation.get("top5_accuracy")
    return [
        ("Loss", words.number(evaluation.get("loss"), 4)),
        ("Top-1 accuracy", words.percent(evaluation["accuracy"], 2)),
        ("Top-5 accuracy", "only for more than 5 classes" if top5 is None else words.percent(top5, 2)),
        ("Images evaluated", words.number(evaluation["images"])),
        ("Training time", words.duration(training.get("train_seconds"))),
        ("Training speed, images/s", words.number(training.get("images_per_second"))),
        ("Share of time waiting for data", words.percent(training.get("data_wait_share"), 2)),
        ("Goodput", words.percent(training.get("goodput"))),
        ("Peak memory", words.memory(training.get("peak_memory_bytes"))),
        ("Steps", words.number(training.get("steps"))),
        ("Epochs", f"{training['epochs']:g}" if training.get("epochs") is not None else words.UNKNOWN),
    ]


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table: the path of each leaf, and its text."""
    if isinstance(value, dict):
        return [row for name, inner in value.items() for row in _flat(inner, f"{key} / {name}" if key else str(name))]
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return [row for k, inner in enumerate(value) for row in _flat(inner, f"{key} {k}")]
    text = "; ".join(map(str, value)) if isinstance(value, list) else words.UNKNOWN if value is None else str(value)
    return [(words.shown(key), words.shown(text) or "none")]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["width"] = lambda share: Markup(f"{100 * share:.2f}%")
    return environment.get_template("template.html.j2")


def _write(page: str, path: Path) -> Path:
    """Write aside, then move into place: a reader sees the old page or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"the report {path} cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)
    return path
