"""What the report says of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import page_of, section
from tests.support.runs import change_json, make_run
from vgg_ddp.analysis.budget import spread
from vgg_ddp.analysis.data_quality import accuracy_by_doubles
from vgg_ddp.report.sections import data


def test_the_accuracy_on_images_without_a_double_in_training_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", images=400)
    summary = json.loads((run.path / "evaluation/summary.json").read_text())
    doubles = list(range(40))
    found = {"looked_at": 400, "of": 400, "test_images": 40, "sample_index": doubles, "other_labels": 2, "pairs": []}
    none = {"looked_at": 200, "of": 400, "test_images": 0, "sample_index": [], "other_labels": 0, "pairs": []}
    right, known = run.label == run.prediction, np.zeros(400, bool)
    known[spread(400, 200)] = True
    known[:40] = False
    change_json(
        run.path / "evaluation/summary.json",
        data={**summary["data"], "near_duplicates": {"train": found, "test": none}},
        near_duplicates_accuracy=accuracy_by_doubles(
            {"train": found, "test": none}, right, run.predictions.sample_index
        ),
    )
    said = section(page_of(run), "data").text
    shares = [
        f"{100 * right[known].mean():.1f} % of the {known.sum()} without",
        f"{100 * right[:40].mean():.1f} % of the 40 with one.",
    ]
    assert all(share in said for share in shares)
    assert "Compared were 200 of 400 test images and 400 of 400 training images, evenly spread." in said


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([1, 1], "Every class has 1 training image."),
        ([50, 50], "Every class has 50 training images."),
        ([0, 1], "No training image shows a cat; 1 shows a dog."),
        ([0, 12], "No training image shows a cat; 12 show a dog."),
        ([1, 12], "Training images show a cat once and a dog 12 times: 12.0 times as many."),
        ([40, 41], "Training images show a cat 40 times and a dog 41 times: almost as many."),
    ],
)
def test_how_even_the_classes_are(train: list[int], said: str) -> None:
    assert data.evenness_sentence({"train": train}, ["cat", "dog"]) == said
