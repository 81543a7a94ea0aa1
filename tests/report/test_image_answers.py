"""What the page of one's own images says of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import Page, section
from vgg_ddp.report import write_image_answers
from vgg_ddp.report.image_answers import Answer


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([3], "Its answers to 1 image: c3 1."),
        ([0, 0, 1], "Its answers to 3 images: c0 2, c1 1."),
        ([*range(9)], "Its answers to 9 images: c0 1, c1 1, c2 1, c3 1, c4 1, c5 1, c6 1, c7 1 and 1 more class."),
        (
            [*range(11), 2],
            "Its answers to 12 images: c2 2, c0 1, c1 1, c3 1, c4 1, c5 1, c6 1, c7 1 and 3 more classes.",
        ),
    ],
)
def test_the_answers_are_counted(answers: list[int], said: str, tmp_path: Path) -> None:
    """With more than eight different answers, it says how many more there are."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    given = [Answer.of(f"{k}.png", None, np.eye(12)[answer], pixels, pixels) for k, answer in enumerate(answers)]
    names = [f"c{k}" for k in range(12)]
    page = write_image_answers(given, [], names, "vgg16", "cifar10", tmp_path, tmp_path / "own.html")
    assert said in section(Page(page.read_text(encoding="utf-8")).root, "story").text
