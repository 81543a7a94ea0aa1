"""Curves of the training: values of RUN/metrics.jsonl over the epochs."""

from __future__ import annotations

from typing import Any

import msgspec

from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.report import charts, words

STEP_CURVE_UP_TO = 10  # epochs; with more, the epoch means say enough
MOST_CLASS_LINES = 4  # of classes over the epochs


def series(metrics: list[dict[str, Any]], split: str, scope: str, value: str) -> charts.Points:
    """Epochs and values of the rows of one kind."""
    rows = [row for row in metrics if (row["split"], row["scope"]) == (split, scope) and row.get(value) is not None]
    return [float(row["epoch"]) for row in rows], [float(row[value]) for row in rows]


def curves(metrics: list[dict[str, Any]], dataset: str, recipe: Config | None = None) -> list[dict[str, Any]]:
    """Loss, accuracy, learning rate and speed over the epochs, each with a caption and the names of its lines.

    Args:
        recipe: what the run was trained with, which says why training and validation are not measured alike.
    """
    drawn = []
    for name, shares in (("loss", False), ("accuracy", True)):
        train, validation = series(metrics, "train", "epoch", name), series(metrics, "validation", "epoch", name)
        steps = series(metrics, "train", "steps", name) if len(train[0]) <= STEP_CURVE_UP_TO else ([], [])
        lines = [
            charts.Line("training, steps", steps, "steps"),
            charts.Line("training", train, "train"),
            charts.Line("validation", validation, "validation"),
        ]
        ends = [f"{line.name} {_ends(line.points[1], shares)}" for line in lines[1:] if line.points[1]]
        when = "first to last epoch" if len(train[0]) > 1 else "after one epoch"
        caption = f"{name.capitalize()} on {dataset}" + (f", {when}: {'; '.join(ends)}" if ends else "")
        if recipe and validation[0] and (unlike := unlike_sentence(recipe, of_loss=name == "loss")):
            caption += f". {unlike}"
        drawn += chart(name, caption, lines, shares)
    rates = series(metrics, "train", "steps", "lr")
    if rates[0]:
        caption = f"Learning rate on {dataset}: at most {max(rates[1]):.3g}, at the end {rates[1][-1]:.3g}"
        drawn += chart("learning rate", caption, [charts.Line("learning rate", rates, "train")])
    norms = series(metrics, "train", "steps", "gradient_norm")
    if norms[0]:
        caption = f"Norm of the gradient on {dataset}, before it is clipped: at most {max(norms[1]):.3g}"
        drawn += chart("gradient norm", caption, [charts.Line("gradient norm", norms, "train")])
    speed = series(metrics, "train", "steps", "images_per_second")
    if speed[0]:
        middle = sorted(speed[1])[len(speed[1]) // 2]
        caption = f"Images/s in training on {dataset}: {words.number(middle)} in the middle"
        drawn += chart("images/s", caption, [charts.Line("images/s", speed, "train")])
    return drawn


def chart(name: str, caption: str, lines: list[charts.Line], shares: bool = False) -> list[dict[str, Any]]:
    """One figure of the lines that have points; nothing where none has."""
    lines = [line for line in lines if line.points[0]]
    if not lines:
        return []
    return [{"svg": charts.lines(name, caption, lines, name, shares), "caption": caption, "lines": lines}]


def classes_over_epochs(
    metrics: list[dict[str, Any]], classes: list[str], worst: list[int], images: str
) -> dict[str, Any] | None:
    """Validation accuracy over the epochs of the classes in `worst`; None where the run did not record it.

    Args:
        images: on how many validation images that is.
    """
    rows = [row for row in metrics if row["split"] == "validation" and row.get("class_accuracy")]
    styles = ["second", "first", "third", "fourth"]
    lines = []
    for k, style in zip(worst[:MOST_CLASS_LINES], styles):
        found = [(float(row["epoch"]), row["class_accuracy"][k]) for row in rows]
        points = [(epoch, float(share)) for epoch, share in found if share is not None]
        lines.append(charts.Line(classes[k], ([x for x, _ in points], [y for _, y in points]), style))
    caption = (
        f"The classes with the lowest test accuracy over the epochs, on {images}: other images, and fewer, than those of the "
        "table, so that the two differ"
    )
    return next(iter(chart("accuracy", caption, lines, shares=True)), None)


def _ends(values: list[float], shares: bool) -> str:
    said = [words.percent(value) if shares else words.number(value, 3) for value in (values[0], values[-1])]
    return " to ".join(said if len(values) > 1 else said[:1])


def unlike_sentence(recipe: Config, of_loss: bool) -> str:
    """Why training and validation figures of a run differ beside what was learned; empty where they are measured alike."""
    changes = {
        "label smoothing": of_loss and recipe.loss.label_smoothing > 0,
        "weights of classes": of_loss and recipe.loss.class_weights is not None,
        "mixed images": recipe.augment.mixes,
        "augmentation": msgspec.structs.replace(recipe.augment, mixup=0.0, cutmix=0.0) != AugmentConfig(),
        "dropout": recipe.model.head == "paper" and recipe.model.dropout > 0,
    }
    changed = [what for what, there in changes.items() if there]
    sizes = [f"{size}" for size in dict.fromkeys(recipe.data.train_sizes)]
    hardest = recipe.loss.hardest
    chosen = f"on the {words.percent(hardest)} of each batch with the largest loss" if hardest < 1 else ""
    at = f"on images of {words.listed([*sizes, str(recipe.data.image_size)])} pixels" if sizes else ""
    how = ", ".join(part for part in (f"with {words.listed(changed)}" if changed else "", chosen, at) if part)
    size = f" at {recipe.data.image_size} pixels" if sizes else ""
    return f"Not measured alike: training {how}, while the weights change; validation{size} without." if how else ""
