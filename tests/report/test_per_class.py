"""Accuracy per class, the worst class, and what is taken for what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    f1_score,
)

from tests.support.pages import Node, page_of, section
from tests.support.runs import change_json, degenerate, make_run
from vgg_ddp.report import words
from vgg_ddp.report.sections import per_class


@pytest.mark.seconds
def test_many_classes_show_a_picture_and_the_most_frequent_confusions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **degenerate("many classes"))
    confusion = section(page_of(run), "confusion")
    assert len(confusion.all("canvas")) == 1
    rows = confusion.table()
    mistakes = run.confusion * (1 - np.eye(100, dtype=int))
    assert [int(row[2]) for row in rows] == np.sort(mistakes.ravel())[::-1][:20].tolist()
    for true, predicted, images, share in rows:
        i, j = int(true[-3:]), int(predicted[-3:])
        assert mistakes[i, j] == int(images)
        assert float(share.split()[0]) == pytest.approx(100 * mistakes[i, j] / run.confusion[i].sum(), abs=0.05)


def test_the_worst_class_says_how_it_is_worse(tmp_path: Path) -> None:
    label = np.arange(400) % 4
    prediction = np.where((label == 2) & (np.arange(400) % 8 == 2), 3, label)
    page = page_of(make_run(tmp_path / "run", ["cat", "dog", "elk", "fox"], label, prediction))
    worst = section(page, "worst")
    assert worst.all("h2")[0].text.startswith("The worst class: elk")
    assert (
        "50.0 % of its images are named correctly, of the others 100 %: more than chance (p below 0.0001" in worst.text
    )
    stands = {row[0]: row[3] for row in section(page, "classes").table()}
    assert stands == {"cat": "better", "dog": "better", "fox": "better", "elk": "worse"}
    assert "always taken for a fox (50 misses)" in worst.text


def test_misses_sentence_reads_as_a_sentence() -> None:
    classes = ["cat", "deer", "dog", "frog", "ship"]
    confusion = np.diag([0, 9, 9, 9, 9]) * 100
    confusion[0] = [100, 12, 41, 15, 11]
    assert per_class.misses_sentence(classes, confusion, 0).replace(words.NBSP, " ") == (
        "When a cat is missed it is taken for a dog (52 %), a frog (19 %), a deer (15 %): together 86 % of its 79 misses."
    )
    once = np.array([[9, 1], [0, 9]])
    assert per_class.misses_sentence(classes, once, 0).endswith("it is always taken for a deer (1 miss).")


def test_where_classes_are_uneven_the_means_over_classes_come_first(tmp_path: Path) -> None:
    label = np.repeat([0, 1], [90, 10])
    prediction = np.zeros_like(label)  # 90 % of all images, half of each class
    run = make_run(tmp_path / "run", ["common", "rare"], label, prediction)
    rows = [
        [cell.text for cell in row.parts if isinstance(cell, Node)] for row in section(page_of(run), "speed").all("tr")
    ]
    assert "Balanced accuracy" in rows[0][0] and rows[0][1].startswith("50.00")
    f1 = f1_score(label, prediction, average="macro", zero_division=0)
    assert "Macro F1" in rows[1][0] and rows[1][1].startswith(f"{100 * f1:.2f}")
    assert [row[1][:5] for row in rows if row[0] == "Top-1 accuracy"] == ["90.00"]
    change_json(run.path / "evaluation/summary.json", uneven=False)
    assert section(page_of(run), "speed").all("tr")[0].text.startswith("Loss")
