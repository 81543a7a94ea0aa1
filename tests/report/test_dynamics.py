"""What the report says of the answers to the training images: which epochs had an image."""

from __future__ import annotations

import pytest

from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.report.sections.dynamics import sentence

FOUND = {"trained_on": 200, "epochs": 6, "always_right": 100, "never_right": 20, "forgotten": 50}


@pytest.mark.parametrize(
    ("fewest", "share", "said", "more"),
    [
        (6, 1.0, "in every epoch of 6, ", "in the next. These"),
        (5, 1.0, "in every epoch that had them, 5 to 6 for each, ", "in the next. These"),
        (
            1,
            0.5,
            "in every epoch that had them, 1 to 6 for each, ",
            "among the 50.0\N{NO-BREAK SPACE}% of its batch with the largest loss.",
        ),
    ],
    ids=["all epochs", "a part of the last epoch", "the hardest images"],
)
def test_the_epochs_that_had_an_image_are_counted(fewest: int, share: float, said: str, more: str) -> None:
    found = sentence({**FOUND, "fewest_epochs": fewest}, Config(loss=LossConfig(hardest=share)))
    assert said in found
    assert more in found


def test_a_run_of_which_the_fewest_are_not_known_has_the_sentence_of_all_epochs() -> None:
    assert "in every epoch of 6, " in sentence(FOUND)
