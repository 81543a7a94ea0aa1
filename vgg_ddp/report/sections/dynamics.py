"""How the training images were answered, epoch after epoch: which are easy, which ambiguous, which maybe labelled wrongly."""

from __future__ import annotations

from typing import Any

from vgg_ddp.config import Config
from vgg_ddp.report import charts, words
from vgg_ddp.report.kept_pictures import Pictures
from vgg_ddp.report.reading import Evaluation

MOST_TILES = 24
UNKNOWN = (
    "Not known: the run has not kept how its training images were answered, over three epochs or more (log.answers)."
)


def values(evaluation: Evaluation, pictures: Pictures | None, recipe: Config | None = None) -> dict[str, Any]:
    """The sentences, the map, the table by class and the pictures; sentences alone where nothing is known."""
    found = evaluation.summary.get("training_dynamics")
    if found is None:
        return {"words": UNKNOWN, "svg": None}
    caption = f"The {words.number(found['trained_on'])} training images of {evaluation.dataset}: darker where more are"
    return {
        "words": sentence(found, recipe),
        "caption": caption,
        "svg": charts.density(
            caption, found["map"], "variability: deviation over the epochs", "confidence in the label", (0.5, 1.0)
        ),
        "of_margin": margin_sentence(found["lowest_margin"][:MOST_TILES]),
        "rows": [_class_row(words.shown(row["name"]), row) for row in found["per_class"]],
        "lowest": [_tile(row, pictures) for row in found["lowest_margin"][:MOST_TILES]],
        "forgotten": [_tile(row, pictures) for row in found["most_forgotten"][:MOST_TILES]],
    }


def sentence(found: dict[str, Any], recipe: Config | None = None) -> str:
    """How many images were always, never, and sometimes right; `recipe`: what the run was trained with."""
    images, most = found["trained_on"], found["epochs"]
    fewest = found.get("fewest_epochs", most)
    of = f" of {most}" if fewest == most else f" that had them, {fewest} to {most} for each"

    hardest = 1.0 if recipe is None else recipe.loss.hardest
    only = (
        f" An epoch counts an image only if it was among the {words.percent(hardest)} of its batch with the largest loss."
        if hardest < 1
        else ""
    )

    def part(name: str) -> str:
        return f"{words.number(found[name])} ({words.percent(found[name] / images)})"

    return (
        f"Of {words.number(images)} training images, {part('always_right')} were named correctly in every epoch{of}, "
        f"{part('never_right')} in none, and {part('forgotten')} were forgotten at least once: right in one epoch and "
        f"wrong in the next.{only} These are the answers of the training itself, to the images as it cropped and changed them."
    )


def margin_sentence(lowest: list[dict[str, Any]]) -> str:
    """What a low margin means, and how many of those shown were never right."""
    never = sum(not row["right"] for row in lowest)
    return (
        "Below are the images whose label was learned least: averaged over all epochs, the label's logit was "
        f"farthest below the highest other one. {never} of these {len(lowest)} never got their label as the answer. Check "
        "whether the label is right before you blame the network: wrong labels tend to come first in this order."
    )


def _class_row(name: str, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "share": row["confidence"] or 0.0,
        "confidence": words.measure(row["confidence"]),
        **{key: words.number(row[key]) for key in ("trained_on", "always_right", "never_right", "forgotten")},
    }


def _tile(row: dict[str, Any], pictures: Pictures | None) -> dict[str, Any]:
    picture = None if pictures is None else pictures.single("train", row["sample"])
    return {
        "sample": row["sample"],
        "label": words.shown(row["label"]),
        "source": None if picture is None else picture.source,
        "pixelated": picture is not None and picture.pixelated,
        "name": f"image {row['sample']}" if picture is None else picture.name,
        "right": f"right in {row['right']} of {row['epochs']} epochs",
        "forgotten": f"forgotten {row['forgotten']} times" if row["forgotten"] > 1 else "forgotten once",
    }
