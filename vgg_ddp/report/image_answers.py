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
MOST_NAMED = 8  # different answers whose counts are told
NEAREST_SIDE = 64  # pixels of a training image, at most

SECTIONS = [("story", "In short"), ("images", "Images")]


@dataclass(frozen=True)
class Answer:
    """A network's answer to one image.

    Attributes:
        name: of its file.
        label: the class that one of its folders is named after, or None.
        probabilities: [classes].
        shown, seen: data URLs of the image and of what the network sees of it; "" for images beyond those on the page.
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
        drawn: bool = True,
    ) -> Answer:
        """An answer with its pixels [height, width, 3] and those that the network sees made small enough to keep.

        Args:
            drawn: whether the page shows them; else they are not kept.
        """
        pictures = (thumbnails.jpeg(pixels), thumbnails.single(seen)) if drawn else ("", "")
        return Answer(name, label, probabilities, *pictures)

    @property
    def order(self) -> list[int]:
        """Classes, the likeliest first."""
        return [int(k) for k in np.argsort(-self.probabilities, kind="stable")]


@dataclass(frozen=True)
class Nearest:
    """The training images that are most like each of the first `MOST_IMAGES` images.

    Attributes:
        samples: indices into the train split, int64 [n, few], the nearest first.
        searched: among how many training images they were looked for.
        pictures: by sample, how it is shown.
    """

    samples: NDArray[np.int64]
    searched: int
    pictures: dict[int, dict[str, Any]]

    @staticmethod
    def of(dataset: Dataset, samples: NDArray[np.int64], searched: int) -> Nearest:
        """With the pictures of `samples`, of the train split of `dataset`.

        Raises:
            UserError: one that cannot be decoded.
        """
        split, pictures = dataset.split("train"), {}
        for sample in np.unique(samples).tolist():
            pixels, name = split.decode(sample), words.shown(dataset.classes[split.labels[sample]])
            pictures[sample] = {
                "source": thumbnails.single(pixels, NEAREST_SIDE),
                "pixelated": thumbnails.pixelated(pixels),
                "name": name,
                "alt": f"training image {sample}: {name}",
            }
        return Nearest(samples, searched, pictures)


def write_image_answers(
    answers: list[Answer],
    unreadable: list[str],
    classes: list[str],
    network: str,
    dataset: str,
    folder: Path,
    path: Path,
    views: int = 1,
    how: str = "",
    nearest: Nearest | None = None,
) -> Path:
    """Write the page to `path`.

    Args:
        views, how: of each image that were averaged over, and which, in words; "" for one as in training's validation.
        nearest: what is shown under each; None where it is not known.

    Raises:
        UserError: it cannot be written.
    """
    names = [words.shown(name) for name in classes]
    labelled = [one for one in answers if one.label is not None]
    right = sum(classes[one.order[0]] == one.label for one in labelled)
    counts = np.bincount([one.order[0] for one in answers], minlength=len(classes))
    story = [
        f"{network} has learned {len(classes)} classes from {words.shown(dataset)}, and answers with one of them whatever "
        f"it is shown. Its answers to {words.counted(len(answers), 'image')}: {_counts_said(names, counts)}."
    ]
    if how:
        mean = f"Each answer is the mean over {views} views of the image"
        story.append(f"{mean if views > 1 else 'It was shown one view of each image'}: {how}.")
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
            _shown(one, names, classes)
            | {"nearest": [] if nearest is None else [nearest.pictures[k] for k in nearest.samples[place].tolist()]}
            for place, one in enumerate(answers[:MOST_IMAGES])
        ],
        "how": how,
        "searched": words.number(nearest.searched) if nearest else "",
        "sections": SECTIONS,
    }
    return render("image_answers.html.j2", values, path)


def _counts_said(names: list[str], counts: NDArray[np.int64]) -> str:
    """How often each class was answered, the most frequent first; of many some, and how many more there are."""
    ranked = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    said = [f"{names[k]} {words.number(int(counts[k]))}" for k in ranked[:MOST_NAMED]]
    more = len(ranked) - len(said)
    return ", ".join(said) + (f" and {words.counted(more, 'more class', 'more classes')}" if more else "")


def _shown(one: Answer, names: list[str], classes: list[str]) -> dict[str, Any]:
    right = None if one.label is None else classes[one.order[0]] == one.label
    return {
        "name": words.shortened(one.name),
        "shown": one.shown,
        "seen": one.seen,
        "pixelated": one.seen.startswith("data:image/png"),
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
