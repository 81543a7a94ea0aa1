"""The nearest training images under mistakes and doubtful labels, and training images whose label is doubtful."""

from __future__ import annotations

from typing import Any

from vgg_ddp.report import words
from vgg_ddp.report.kept_pictures import Pictures
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections.pictures import TILES

SIDE = 64  # pixels of a picture, at most
MOST_DOUBTFUL = 8  # test images
MOST_TRAINING = 18  # training images


def values(evaluation: Evaluation, pictures: Pictures | None) -> dict[str, Any]:
    """The sentences, and rows of an image with its nearest training images; no rows where there are no pictures."""
    why, summary = evaluation.summary["why"], evaluation.summary
    found, training = why["neighbours"], why["training_labels"]
    described = {"left_out": why["left_out"], "budget": why["budget"], "words": "", "training_words": "", "lists": []}
    if found is None:
        return described
    mistakes = _test_images(evaluation, pictures, summary["surest_mistakes"][:TILES])
    doubtful = _test_images(evaluation, pictures, summary["doubtful_labels"]["sample_index"][:MOST_DOUBTFUL])
    named = [
        (f"The surest mistakes on {evaluation.dataset}, and what they are like", mistakes),
        (f"Doubtful test labels of {evaluation.dataset}, and what these images are like", doubtful),
        (f"Doubtful training labels of {evaluation.dataset}", _training_images(evaluation, pictures, training)),
    ]
    return {
        **described,
        "words": nearest_sentence(found["surest_mistakes"], found["searched"]),
        "training_words": training_labels_sentence(training),
        "lists": [{"caption": caption, "rows": rows} for caption, rows in named if rows],
    }


def _test_images(evaluation: Evaluation, pictures: Pictures | None, samples: list[int]) -> list[dict[str, Any]]:
    rows, nearest = [], evaluation.summary["why"]["neighbours"]["nearest"]
    for sample in samples:
        if str(sample) not in nearest:
            continue
        k = evaluation.position(sample)
        true, answer = int(evaluation.label[k]), int(evaluation.prediction[k])
        sure = words.percent(float(evaluation.confidence[k]), 0)
        names = [words.quoted(evaluation.classes[one]) for one in (true, answer)]
        said = f"{names[0]}, taken for {names[1]}: {sure}"
        rows.append(
            _row(evaluation, pictures, (evaluation.summary["split"], sample), said, nearest[str(sample)], true, answer)
        )
    return [row for row in rows if row]


def _training_images(
    evaluation: Evaluation, pictures: Pictures | None, training: dict[str, Any]
) -> list[dict[str, Any]]:
    keys = ("sample_index", "label", "prediction", "nearest")
    rows = [
        _row(
            evaluation,
            pictures,
            ("train", sample),
            f"labelled {words.quoted(evaluation.classes[true])}; "
            + (
                "the network says so too, its nearest images do not"
                if true == answer
                else f"the network: {words.quoted(evaluation.classes[answer])}"
            ),
            nearest,
            true,
            answer,
        )
        for sample, true, answer, nearest in zip(*(training[key][:MOST_TRAINING] for key in keys))
    ]
    return [row for row in rows if row]


def _row(
    evaluation: Evaluation,
    pictures: Pictures | None,
    place: tuple[str, int],
    said: str,
    nearest: list[int],
    true: int,
    answer: int,
) -> dict[str, Any]:
    """An image and its nearest training images; empty where one of the pictures cannot be had."""
    drawn = [
        None if pictures is None else pictures.single(*one, SIDE) for one in (place, *(("train", k) for k in nearest))
    ]
    there = [picture for picture in drawn if picture is not None]
    if len(there) < len(drawn):
        return {}
    shown = [
        {
            "source": picture.source,
            "pixelated": picture.pixelated,
            "name": evaluation.classes[picture.label],
            "mark": "✓ " if picture.label == true else "✗ " if picture.label == answer else "",
            "alt": f"training image {sample} of {evaluation.dataset}: {evaluation.classes[picture.label]}",
        }
        for picture, sample in zip(there[1:], nearest)
    ]
    own = {"source": there[0].source, "pixelated": there[0].pixelated}
    split = "training" if place[0] == "train" else place[0]
    return {**own, "alt": f"{split} image {place[1]} of {evaluation.dataset}: {said}", "words": said, "nearest": shown}


def nearest_sentence(found: dict[str, Any], searched: int) -> str:
    """How many of the nearest training images of the surest mistakes carry the network's wrong answer."""
    if not found["mistakes"]:
        return "There is no mistake to explain."
    interval = found["wrong_answer_interval"]
    ends = f" (95{words.NBSP}% interval {words.span(interval)})" if interval else ""
    mistakes = found["mistakes"]
    which = "the surest mistake" if mistakes == 1 else f"each of the {words.number(mistakes)} surest mistakes"
    wrong, chance = words.percent(found["wrong_answer"], 0), words.percent(found["wrong_answer_by_chance"], 0)
    said = (
        f"Near to an image are training images that the layer before the last describes alike. Of the "
        f"{words.number(found['nearest'])} nearest to {which}, among {words.images_of(searched, 'training')}, {wrong} carry "
        f"the network's wrong answer{ends}, where {chance} would by chance, and {words.percent(found['true_label'], 0)} "
        "the image's own label."
    )
    if interval and interval[0] > found["wrong_answer_by_chance"]:
        return f"{said} So the network has seen images like these under the name that it gives them."
    if interval and interval[1] < found["wrong_answer_by_chance"]:
        return f"{said} So images like these had other names in training: the mistake is made in the last layer."
    return said


def training_labels_sentence(training: dict[str, Any]) -> str:
    """How many labels of training images are doubtful, and how they were found."""
    looked_at = f"{words.number(training['images'])} of {words.images_of(training['of'], 'training')}"
    if not training["doubtful"]:
        return f"Of {looked_at} none has a label that the network and its nearest images, taken together, contradict."
    one = training["doubtful"] == 1
    have, their, first = ("has", "its", "It is") if one else ("have", "their", "The first are")
    return (
        f"Of {looked_at}, {words.number(training['doubtful'])} {have} a label that the network and {their} nearest images, "
        f"taken together, contradict (confident learning on the mean of both). {first} worth a look: ✓ marks neighbours with "
        "the label in question, ✗ those with the network's answer."
    )
