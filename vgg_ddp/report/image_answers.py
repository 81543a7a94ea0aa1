"""What a network makes of a folder of images: each with what the network sees of it and its likeliest answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.data.dataset import Dataset
from vgg_ddp.report import thumbnails, words
from vgg_ddp.report.rendering import render

MOST_IMAGES = 400  # on the page; predictions.json has all
TOP = 3  # answers shown of each
NEAREST_SIDE = 64  # pixels of a training image, at most

SECTIONS = [("story", "In short"), ("images", "Images")]


@dataclass(frozen=True)
class Answer:
    """A network's answer to one image.

    Attributes:
        name: of its file.
        label: the class that one of its folders is named after, or None.
        probabilities: [classes].
        shown, seen: data URLs of the image and of what the network sees of it.
    """

    name: str
    label: str | None
    probabilities: NDArray[np.float64]
    shown: str
    seen: str

    @staticmethod
    def of(
        name: str,
        label: str | None,
        probabilities: NDArray[np.float64],
        pixels: NDArray[np.uint8],
        seen: NDArray[np.uint8],
    ) -> Answer:
        """An answer with its pixels [height, width, 3] and those that the network sees made small enough to keep."""
        return Answer(name, label, probabilities, thumbnails.jpeg(pixels), thumbnails.png(seen))

    @property
    def order(self) -> list[int]:
        """Classes, the likeliest first."""
        return [int(k) for k in np.argsort(-self.probabilities, kind="stable")]


@dataclass(frozen=True)
class Nearest:
    """The training images that are most like each of the first `MOST_IMAGES` images.

    Attributes:
        dataset: with its images.
        samples: indices into its train split, int64 [n, few], the nearest first.
        searched: among how many training images they were looked for.
    """

    dataset: Dataset
    samples: NDArray[np.int64]
    searched: int


def write_image_answers(
    answers: list[Answer],
    unreadable: list[str],
    classes: list[str],
    network: str,
    dataset: str,
    folder: Path,
    path: Path,
    how: str = "",
    nearest: Nearest | None = None,
) -> Path:
    """Write the page to `path`.

    Args:
        how: what the network was shown of each image, where it is not one view.
        nearest: what is shown under each; None where it is not known.

    Raises:
        UserError: it cannot be written.
    """
    names = [words.shown(name) for name in classes]
    labelled = [one for one in answers if one.label is not None]
    right = sum(classes[one.order[0]] == one.label for one in labelled)
    counts = np.bincount([one.order[0] for one in answers], minlength=len(classes))
    said = [f"{names[k]} {words.number(int(counts[k]))}" for k in np.argsort(-counts, kind="stable")[:8] if counts[k]]
    story = [
        f"{network} has learned {len(classes)} classes from {words.shown(dataset)}, and answers with one of them whatever "
        f"it is shown. Its answers to {words.number(len(answers))} images: {', '.join(said)}."
    ]
    if how:
        story.append(f"Each is the mean of what it says to several views of the image: {how}.")
    if labelled:
        story.append(f"In folders named after a class: {words.number(len(labelled))}; named so: {words.number(right)}.")
    if len(answers) > MOST_IMAGES:
        story.append(f"The first {MOST_IMAGES} are shown; predictions.json has all.")
    values = {
        "title": f"{words.shown(network)} on {words.shown(str(folder))}",
        "dataset": words.shown(folder.name),
        "split": "own",
        "story": " ".join(story),
        "notes": [words.shown(line) for line in unreadable],
        "images": [
            _shown(one, names, classes) | {"nearest": _drawn(nearest, k, names)}
            for k, one in enumerate(answers[:MOST_IMAGES])
        ],
        "searched": words.number(nearest.searched) if nearest else "",
        "sections": SECTIONS,
    }
    return render("image_answers.html.j2", values, path)


def _shown(one: Answer, names: list[str], classes: list[str]) -> dict[str, Any]:
    right = None if one.label is None else classes[one.order[0]] == one.label
    return {
        "name": words.shortened(one.name),
        "shown": one.shown,
        "seen": one.seen,
        "mark": "" if right is None else "✓ " if right else "✗ ",
        "answers": [
            {
                "name": names[k],
                "share": float(one.probabilities[k]),
                "percent": words.percent(float(one.probabilities[k]), 0),
            }
            for k in one.order[:TOP]
        ],
    }


def _drawn(nearest: Nearest | None, image: int, names: list[str]) -> list[dict[str, Any]]:
    """Pictures of the training images that are most like an image."""
    if nearest is None:
        return []
    split = nearest.dataset.split("train")
    of_classes = [(int(sample), names[split.labels[sample]]) for sample in nearest.samples[image]]
    pictures = [(split.decode(sample), sample, name) for sample, name in of_classes]
    return [
        {
            "source": thumbnails.single(pixels, NEAREST_SIDE),
            "pixelated": thumbnails.pixelated(pixels),
            "name": name,
            "alt": f"training image {sample}: {name}",
        }
        for pixels, sample, name in pictures
    ]
