"""Whether the network's probabilities can be trusted."""

from __future__ import annotations

from typing import Any

from vgg_ddp.config import Config
from vgg_ddp.report import charts, words
from vgg_ddp.report.reading import Evaluation

VERDICTS = {
    "calibrated": "as sure as it should be, as far as {images} can tell",
    "too sure": "too sure of itself",
    "too modest": "too modest",
    "uneven": "right on average, but too sure of some answers and too modest about others",
}


def values(evaluation: Evaluation, recipe: Config | None) -> dict[str, Any]:
    """The reliability diagrams and what they say."""
    measured, dataset = evaluation.summary["calibration"], evaluation.dataset
    images = words.images_of(evaluation.summary["images"], evaluation.split)
    named = [("As it is", measured)]
    if measured["scaled"]:
        named.append((f"With temperature {measured['temperature']:.2f}", measured["scaled"]))
    drawn = []
    for name, values in named:
        error = words.percent(values["expected_calibration_error"])
        caption = (
            f"{name}, on {images} of {dataset}: calibration error (ECE) {error}, loss {words.number(values['loss'], 3)}"
        )
        drawn.append({"caption": caption, "svg": charts.reliability(caption, values["bins"])})
    unfitted = f"No temperature was fitted: {measured['temperature_from']}."
    smoothing = recipe.loss.label_smoothing if recipe else 0.0
    mixes = recipe is not None and recipe.augment.mixes
    said = [
        calibration_sentence(measured, evaluation.summary["accuracy"], images),
        modesty_sentence(measured, len(evaluation.classes), smoothing, mixes),
        temperature_sentence(measured),
    ]
    return {
        "words": " ".join(filter(None, said)),
        "charts": drawn,
        "note": unfitted if measured["temperature"] is None else "",
    }


def calibration_sentence(calibration: dict[str, Any], accuracy: float, images: str) -> str:
    """Whether the network is too sure or not sure enough, on these images, and how much of it may be noise."""
    if calibration["verdict"] == "no numbers":
        return "Its probabilities are no numbers."
    how = VERDICTS[calibration["verdict"]].format(images=images)
    noise, error = calibration["noise"], calibration["expected_calibration_error"]
    low, high = noise["gaps"]
    told = error > noise["highest_error"] or not low <= calibration["mean_confidence"] - accuracy <= high
    if (
        calibration["verdict"] == "calibrated" and told
    ):  # by many images, of which a difference of less than a point shows
        how = "nearly as sure as it should be"
    return (
        f"On average it is {words.percent(calibration['mean_confidence'])} sure and {words.percent(accuracy)} right: "
        f"{how}. Its "
        f"calibration error (ECE) is {words.percent(error)}; one that is exactly as "
        "sure as it "
        f"should be shows {words.percent(noise['error'])} on as many images, and seldom more than "
        f"{words.percent(noise['highest_error'])}."
    )


def modesty_sentence(calibration: dict[str, Any], classes: int, smoothing: float, mixes: bool) -> str:
    """What in the training makes a network modest; empty where it is not, or nothing does."""
    if calibration["verdict"] != "too modest" or not (smoothing or mixes):
        return ""
    if not smoothing:
        return "It was trained on mixed images, whose targets are shares of two classes: that makes a network modest."
    surest = words.percent(1 - smoothing + smoothing / classes, 0)
    return f"It was trained with label smoothing of {smoothing:g}, to be {surest} sure of every answer: that makes it modest."


def temperature_sentence(calibration: dict[str, Any]) -> str:
    """What dividing the logits by a temperature does; empty where none was fitted."""
    if calibration["temperature"] is None:
        return ""
    before, after = calibration["expected_calibration_error"], calibration["scaled"]["expected_calibration_error"]
    low, high = calibration["temperature_interval"]
    said = (
        f"Dividing its logits by a temperature of {calibration['temperature']:.2f} (95{words.NBSP}% interval {low:.2f} to "
        f"{high:.2f}), fitted on {calibration['temperature_from']}, takes the calibration error from "
        f"{words.percent(before)} to {words.percent(after)}"
    )
    return f"{said}; these images cannot tell it from 1, which changes nothing." if low <= 1 <= high else f"{said}."
