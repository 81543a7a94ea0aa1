"""Whether the data can be trusted: class counts, labels, near-duplicates."""

from __future__ import annotations

from typing import Any

from vgg_ddp.report import words
from vgg_ddp.report.kept_pictures import Pictures
from vgg_ddp.report.reading import Evaluation
from vgg_ddp.report.sections.pictures import tile

MOST_DOUBTFUL = 24  # pictures of doubtful labels
MOST_TWICE = 16  # pairs of near-duplicates
LOOKALIKES = 0.1  # of the test images with a double: more than copies would explain


def values(evaluation: Evaluation, pictures: Pictures | None) -> dict[str, Any]:
    """Class counts, doubtful labels, and images that are there twice."""
    found, classes = evaluation.summary["data"], evaluation.classes
    counts = found["class_counts"]
    first = counts.get("train") or next(iter(counts.values()))
    doubtful = evaluation.summary["doubtful_labels"]
    return {
        "evenness": evenness_sentence(counts, classes),
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
        "doubtful_words": doubtful_sentence(doubtful["images"], evaluation.split),
        "doubtful": [
            tile(evaluation, pictures, evaluation.position(sample))
            for sample in doubtful["sample_index"][:MOST_DOUBTFUL]
        ],
        "twice_words": duplicates_sentence(found["near_duplicates"], evaluation.summary["near_duplicates_accuracy"]),
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


def evenness_sentence(counts: dict[str, list[int]], classes: list[str]) -> str:
    """Whether the classes have as many images as one another, in the split of the training."""
    found = counts.get("train") or next(iter(counts.values()))
    low, high = min(found), max(found)
    if low == high:
        return f"Every class has {words.images_of(low, 'training')}."
    few, many = words.named(classes[found.index(low)]), words.named(classes[found.index(high)])
    if low == 0:
        return f"No training image shows {few}; {words.number(high)} {'shows' if high == 1 else 'show'} {many}."
    times = f"{high / low:.1f} times as many" if high / low >= 1.05 else "almost as many"
    how_often = "once" if low == 1 else f"{words.number(low)} times"
    return f"Training images show {few} {how_often} and {many} {words.number(high)} times: {times}."


def doubtful_sentence(count: int, split: str) -> str:
    """What a doubtful label means."""
    if count == 0:
        return "The network contradicts no label with confidence."
    return (
        f"By confident learning, the network contradicts the labels of {words.images_of(count, split)}. Most of these are "
        "its own mistakes; those it is surest of stand first, and are worth a look."
    )


def duplicates_sentence(found: dict[str, dict[str, Any]], accuracy: dict[str, dict[str, int]]) -> str:
    """How many test images have a near-duplicate, where, how many were looked at, and the accuracy without them.

    Args:
        found, accuracy: see `vgg_ddp.analysis.data_quality`.
    """
    said = []
    complete = all(split["looked_at"] == split["of"] for split in found.values())
    compared = "" if complete else " among those compared"
    for other, where in (("train", "a near-duplicate in a training"), ("test", "a near-duplicate in another test")):
        split = found[other]
        have = "has" if split["test_images"] == 1 else "have"
        count = (
            f"{words.images_of(split['test_images'], 'test')} {have}" if split["test_images"] else "No test image has"
        )
        labels = f", {words.number(split['other_labels'])} under another label" if split["other_labels"] else ""
        said.append(f"{count} {where} image{labels}{compared}.")
    sampled = [
        f"{words.number(found[name]['looked_at'])} of {words.number(found[name]['of'])} {which} images"
        for name, which in (("test", "test"), ("train", "training"))
    ]
    said.append("All were compared with all." if complete else f"Compared were {words.listed(sampled)}, evenly spread.")
    with_double, without = accuracy["with"], accuracy["without"]
    if with_double["images"] and without["images"]:
        said.append(
            f"The network names {words.percent(without['correct'] / without['images'])} of the "
            f"{words.number(without['images'])} without a double in training{compared} correctly, "
            f"{words.percent(with_double['correct'] / with_double['images'])} of the "
            f"{words.number(with_double['images'])} with one."
        )
    if found["train"]["test_images"] > LOOKALIKES * found["test"]["looked_at"]:
        said.append("So many are hardly copies: in this data set many pictures look alike.")
    said.append(
        "Found by pixels: shifted by up to a tenth, mirrored, re-encoded or recoloured pictures; cropped ones are missed."
    )
    return " ".join(said)
