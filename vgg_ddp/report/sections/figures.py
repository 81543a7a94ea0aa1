"""Where the time went, and tables of figures, settings and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vgg_ddp.report import words


def where_time_went(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Training seconds as compute, waiting for data, and all that was no step; None where they were not recorded."""
    whole, goodput, waiting = (summary.get(key) for key in ("train_seconds", "goodput", "data_wait_share"))
    if not whole or goodput is None or waiting is None:
        return None
    shares = [
        ("forward, backward and update", goodput * (1 - waiting), "blue"),
        ("waiting for data", goodput * waiting, "orange"),
        ("validation and checkpoints", 1 - goodput, "grey"),
    ]
    return {
        "whole": words.duration(whole),
        "parts": [
            {
                "name": name,
                "share": share,
                "style": style,
                "seconds": words.duration(share * whole),
                "percent": words.percent(share),
            }
            for name, share, style in shares
        ],
    }


def numbers(evaluation: dict[str, Any], training: dict[str, Any]) -> list[tuple[str, str]]:
    """The small table of figures: what was measured, and its value in words."""
    top5 = evaluation.get("top5_accuracy")
    means = [
        ("Balanced accuracy, the mean over classes", words.percent(evaluation.get("balanced_accuracy"), 2)),
        ("Macro F1, the mean over classes", words.percent(evaluation.get("macro_f1"), 2)),
    ]
    first, later = (means, []) if evaluation.get("uneven") else ([], means)
    return [
        *first,
        ("Loss", words.number(evaluation.get("loss"), 4)),
        ("Top-1 accuracy", words.percent(evaluation["accuracy"], 2)),
        *later,
        ("Top-5 accuracy", "only for more than 5 classes" if top5 is None else words.percent(top5, 2)),
        ("Images evaluated", words.number(evaluation["images"])),
        ("Seen of each image", evaluation.get("protocol", {}).get("text", words.UNKNOWN)),
        ("Training time", words.duration(training.get("train_seconds"))),
        ("Training speed, images/s", words.number(training.get("images_per_second"))),
        ("Share of time waiting for data", words.percent(training.get("data_wait_share"), 2)),
        ("Goodput", words.percent(training.get("goodput"))),
        ("Peak memory", words.memory(training.get("peak_memory_bytes"))),
        ("Steps", words.number(training.get("steps"))),
        ("Epochs", f"{training['epochs']:g}" if training.get("epochs") is not None else words.UNKNOWN),
    ]


def config_text(path: Path) -> str | None:
    """A run's configuration as it stands in its file; None where there is none."""
    return words.shown_text(path.read_text("utf-8", errors="replace")) if path.exists() else None


def flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table: the path of each leaf, and its text."""
    if isinstance(value, dict):
        return [row for name, inner in value.items() for row in flat(inner, f"{key} / {name}" if key else str(name))]
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return [row for k, inner in enumerate(value) for row in flat(inner, f"{key} {k}")]
    text = "; ".join(map(str, value)) if isinstance(value, list) else words.UNKNOWN if value is None else str(value)
    return [(words.shown(key), words.shown(text) or "none")]
