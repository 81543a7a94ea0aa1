"""The page of a run without an evaluation: what became of it, its curves, and while it is trained its answers so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vgg_ddp.analysis import course
from vgg_ddp.errors import UserError
from vgg_ddp.report import words
from vgg_ddp.report.sections import curves, figures
from vgg_ddp.report.sections.pictures import Tile
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import Row, last_written
from vgg_ddp.run.outcome import Account

TEMPLATE = "unfinished.html.j2"
MOST_CLASSES = 20  # in the table; of more, the best and the worst half of them

SECTIONS = [
    ("story", "In short"),
    ("training", "Training"),
    ("classes", "Classes"),
    ("pictures", "Pictures"),
    ("configuration", "Configuration"),
    ("environment", "Environment"),
]


def values(
    run: RunDirectory,
    rows: list[Row],
    account: Account,
    *,
    cut_off: int = 0,
    tiles: Sequence[Tile] = (),
    left: str = "",
    live: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What the template is filled with.

    Args:
        rows: of RUN/metrics.jsonl, and `cut_off` the lines of it that cannot be read.
        tiles: images that are held out from training, with the latest answers.
        left: how much of the training is left, in words.
        live: of a page that is written while the run is trained: when, and the seconds after which it reloads itself.
    """
    metrics = last_written(rows)
    environment = _read(run.environment)
    classes = [words.shown(str(name)) for name in _read(run.data).get("classes", [])]
    dataset = words.shown(str(environment.get("data", "its data")))
    ranked = _ranked(metrics, classes)
    return {
        "title": f"{words.shown(run.path.absolute().name)} on {dataset}: {account.state.lower() or 'finished'}",
        "dataset": dataset,
        "split": "validation",
        "account": account,
        "warnings": course.of_training(metrics, len(classes)),
        "cards": _cards(metrics, left),
        "curves_drawn": curves.curves(metrics, dataset),
        "unreadable_lines": cut_off,
        "per_class": _shown_classes(ranked),
        "per_class_of": _which(ranked),
        "tiles": tiles,
        "notes": [words.shown(str(note)) for note in environment.get("fallbacks", [])],
        "config": figures.config_text(run.config),
        "environment": figures.flat(environment),
        "sections": SECTIONS,
        "live": live,
        "last_live": run.live.is_file() and live is None,
    }


def _read(path: Any) -> dict[str, Any]:
    """A JSON file of the run; empty where it is not there, or damaged."""
    try:
        return read_json(path) or {}
    except UserError:
        return {}


def _cards(metrics: list[Row], left: str) -> list[dict[str, str]]:
    """The figures that one looks for first, the latest of each."""
    steps = [row for row in metrics if (row["split"], row["scope"]) == ("train", "steps")]
    validated = [row for row in metrics if row["split"] == "validation"]
    cards = []
    if validated:
        best = max(validated, key=lambda row: row["accuracy"] or 0.0)
        said = f"The best was {words.percent(best['accuracy'])}, after epoch {best['epoch']:.4g}."
        name = "Accuracy on the images held out"
        cards.append({"question": name, "answer": words.percent(validated[-1]["accuracy"]), "words": said})
    if steps:
        last = steps[-1]
        loss = "not a number" if last.get("loss") is None else words.number(last["loss"], 3)
        here = f"In the mean of the steps up to {last['step']:,}, on images as they were augmented."
        cards += [
            {"question": "Training loss", "answer": loss, "words": here},
            {"question": "Images/s", "answer": words.number(last.get("images_per_second")), "words": ""},
            {"question": "Learning rate", "answer": f"{last.get('lr') or 0.0:.3g}", "words": ""},
        ]
        if last.get("seconds") is not None:
            cards.append({"question": "Training time", "answer": words.duration(last["seconds"]), "words": left})
    return cards


def _ranked(metrics: list[Row], classes: list[str]) -> list[tuple[float, str]]:
    """The accuracy of each class with images at the last validation, best first."""
    found = [row["class_accuracy"] for row in metrics if row.get("class_accuracy")]
    if not found or len(found[-1]) != len(classes):
        return []
    return sorted(
        ((share, name) for share, name in zip(found[-1], classes) if share is not None), key=lambda pair: -pair[0]
    )


def _shown_classes(ranked: list[tuple[float, str]]) -> list[dict[str, Any]]:
    """The rows of the table: all classes, or of many the best and the worst."""
    if len(ranked) > MOST_CLASSES:
        ranked = [*ranked[: MOST_CLASSES // 2], *ranked[-MOST_CLASSES // 2 :]]
    return [{"name": name, "share": share, "accuracy": words.percent(share)} for share, name in ranked]


def _which(ranked: list[tuple[float, str]]) -> str:
    """What the table of classes shows of them; empty where it shows all."""
    half = MOST_CLASSES // 2
    return f"the best {half} and the worst {half} of {len(ranked)} classes" if len(ranked) > MOST_CLASSES else ""
