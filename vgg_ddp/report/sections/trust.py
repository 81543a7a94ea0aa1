"""Whether the network's probabilities and the data can be trusted: calibration, class counts, labels, near-duplicates."""

from __future__ import annotations

from typing import Any

from vgg_ddp.analysis.data_quality import accuracy_by_doubles
from vgg_ddp.config import Config
from vgg_ddp.report import charts, words
from vgg_ddp.report.kept_pictures import Pictures
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections.pictures import tile

MOST_DOUBTFUL = 24  # pictures of doubtful labels
MOST_TWICE = 16  # pairs of near-duplicates


def calibration(evaluation: Evaluation, recipe: Config | None) -> dict[str, Any]:
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
        words.calibration_sentence(measured, evaluation.summary["accuracy"], images),
        words.modesty_sentence(measured, len(evaluation.classes), smoothing, mixes),
        words.temperature_sentence(measured),
    ]
    return {
        "words": " ".join(filter(None, said)),
        "charts": drawn,
        "note": unfitted if measured["temperature"] is None else "",
    }


def data(evaluation: Evaluation, pictures: Pictures | None) -> dict[str, Any]:
    """Class counts, doubtful labels, and images that are there twice."""
    found, classes = evaluation.summary["data"], evaluation.classes
    counts = found["class_counts"]
    first = counts.get("train") or next(iter(counts.values()))
    doubtful = evaluation.summary["doubtful_labels"]
    by_doubles = accuracy_by_doubles(found["near_duplicates"]["train"], evaluation.right, evaluation.sample_index)
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
            tile(evaluation, pictures, evaluation.position(sample))
            for sample in doubtful["sample_index"][:MOST_DOUBTFUL]
        ],
        "twice_words": words.duplicates_sentence(found["near_duplicates"], by_doubles),
        "twice": _twice(evaluation, pictures) if pictures else [],
    }


def _twice(evaluation: Evaluation, pictures: Pictures) -> list[dict[str, Any]]:
    """The near-duplicates as pairs of pictures: those in the training images, then those among the test images."""
    shown = []
    for other in ("train", "test"):
        for pair in evaluation.summary["data"]["near_duplicates"][other]["pairs"]:
            places = (("test", pair[0]), (other, pair[1]))
            drawn = [picture for place in places if (picture := pictures.single(*place)) is not None]
            if len(drawn) < len(places):
                continue
            labels = [evaluation.classes[picture.label] for picture in drawn]
            images = [
                {
                    "source": picture.source,
                    "pixelated": picture.pixelated,
                    "alt": f"{split} image {sample} of {evaluation.dataset}: {label}",
                }
                for picture, label, (split, sample) in zip(drawn, labels, places)
            ]
            differ = labels[0] != labels[1]
            said = f"{labels[0]}, but {labels[1]} in {other}" if differ else f"{labels[0]}, also in {other}"
            shown.append({"images": images, "differ": differ, "words": said})
    return sorted(shown, key=lambda pair: not pair["differ"])[:MOST_TWICE]
