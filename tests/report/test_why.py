"""What the report says of the causes of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import decoded, page_of, section
from tests.support.runs import CLASSES, change_json, make_run
from vgg_ddp.analysis import reliance, slices
from vgg_ddp.evaluation.changes import CHANGES
from vgg_ddp.report import words
from vgg_ddp.report.sections import neighbours
from vgg_ddp.report.sections.reliance import MEANINGS, reliance_sentence
from vgg_ddp.report.sections.slices import people_sentence


def test_each_change_has_its_words() -> None:
    assert list(MEANINGS) == list(CHANGES)


def test_causes_are_shown_as_they_were_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = page_of(run)
    why = json.loads((run.path / "evaluation/summary.json").read_text())["why"]

    near = section(page, "neighbours")
    lists = near.all("ul")
    assert [len(one.all("li")) for one in lists] == [9, 8, 3]
    train = run.dataset.split("train")
    for row, sample in zip(
        lists[0].all("li"), json.loads((run.path / "evaluation/summary.json").read_text())["surest_mistakes"]
    ):
        query, *nearest = row.all("img")
        assert query.attributes["alt"].startswith(f"test image {sample} of cifar10: {CLASSES[run.label[sample]]}")
        assert [int(image.attributes["alt"].split()[2]) for image in nearest] == why["neighbours"]["nearest"][
            str(sample)
        ]
        for image, div in zip(nearest, row.all("div")):
            index = int(image.attributes["alt"].split()[2])
            assert decoded(image)[0, 0].tolist() == [index // 256, index % 256, 99]
            mark = {int(run.label[sample]): "✓ ", int(run.prediction[sample]): "✗ "}.get(int(train.labels[index]), "")
            assert div.text == f"{mark}{CLASSES[train.labels[index]]}"
    share = words.percent(why["neighbours"]["surest_mistakes"]["wrong_answer"], 0).replace(words.NBSP, " ")
    assert f"{share} carry the network's wrong answer" in near.text and "Something was left out." in near.text

    rows = section(page, "reliance").all("table")[0].table()
    unchanged, *changed = rows
    accuracies = [row["accuracy"] for row in why["relied_on"]["changes"].values()]
    assert unchanged[2] == words.percent(np.mean(run.label == run.prediction)).replace(words.NBSP, " ")
    assert [row[2] for row in changed] == [words.percent(share).replace(words.NBSP, " ") for share in accuracies]
    assert len(section(page, "occlusion").all("img")) == 18
    places = json.loads(page.all("script", id="map-data")[0].text_raw)
    assert places["index"] == list(range(400)) and places["label"] == run.label.tolist()
    assert "analysis.attributes=FILE" in section(page, "slices").text


def test_slices_are_shown_with_hostile_names_as_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    right = run.label == run.prediction
    bad = "<b>fog</b>"
    weather = np.where(np.arange(400) < 100, bad, "sun")
    right_here = np.where(np.arange(400) < 100, False, right)
    people = np.eye(10)[run.label] * 0.9 + 0.01
    path = run.path / "evaluation/summary.json"
    why = json.loads(path.read_text())["why"]
    why["by_attribute"] = {
        "file": "a.csv",
        "notes": ["test images without a line: 3"],
        "columns": 1,
        "attributes": slices.by_attribute(right_here, {"weather": weather.tolist()}),
    }
    why["by_agreement"] = {"file": "h.npy", **slices.by_agreement(run.label, run.prediction, people)}
    change_json(path, why=why)
    shown = section(page_of(run), "slices")
    assert f"Worse than on the others, by more than chance: “{bad}” of weather (0 %" in shown.text
    assert [row[0] for row in shown.all("table")[0].table()] == ["sun", bad]
    assert (
        f"91.0 % give an image its label, in the mean over 400 test images. The network's {(~right).sum()} wrong"
        in shown.text
    )


def test_where_nothing_was_looked_for_the_page_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run.path / "evaluation/summary.json"
    none = dict.fromkeys(json.loads(path.read_text())["why"])
    change_json(path, why={**none, "budget": "none", "left_out": ["It was not asked for."]})
    page = page_of(run)
    assert section(page, "neighbours").text.endswith("analysis.budget=none. It was not asked for.")
    for name in ("occlusion", "reliance", "map"):
        assert not section(page, name).all("figure")


@pytest.mark.parametrize(
    ("images", "accuracy", "spared"),
    [(400, 1.0, True), (8, 1.0, False), (400, 0.0, False), (400, 0.1, False)],  # of ten classes
)
def test_nothing_is_lost_only_where_much_would_have_been_seen(images: int, accuracy: float, spared: bool) -> None:
    right = np.arange(images) < accuracy * images
    said = reliance_sentence(reliance.describe({"grey": right}, right, {}), "test", classes=10)
    assert ("Little or nothing is lost without colour" in said) == spared


@pytest.mark.parametrize(
    ("mistakes", "said"),
    [
        (1, "Of the 5 nearest to the surest mistake, among "),
        (9, "Of the 5 nearest to each of the 9 surest mistakes, among "),
    ],
)
def test_the_surest_mistakes_are_counted(mistakes: int, said: str) -> None:
    shares = {"wrong_answer": 0.8, "wrong_answer_interval": None, "wrong_answer_by_chance": 0.1, "true_label": 0.1}
    assert said in neighbours.nearest_sentence({"mistakes": mistakes, "nearest": 5, **shares}, 2000)


@pytest.mark.parametrize(
    ("doubtful", "said"),
    [
        (
            1,
            "Of 2,000 of 5,000 training images, 1 has a label that the network and its nearest images, taken together",
        ),
        (
            3,
            "Of 2,000 of 5,000 training images, 3 have a label that the network and their nearest images, taken together",
        ),
    ],
)
def test_doubtful_training_labels_are_counted(doubtful: int, said: str) -> None:
    found = neighbours.training_labels_sentence({"images": 2000, "of": 5000, "doubtful": doubtful})
    assert found.startswith(said) and ("It is worth a look" in found) == (doubtful == 1)


@pytest.mark.parametrize(
    ("mistakes", "classes", "said"),
    [
        (
            1,
            3,
            "The network's one wrong answer is given by 40.0 % of them, any other wrong answer to the same image by 10.0 %.",
        ),
        (
            2,
            3,
            "The network's 2 wrong answers are given by 40.0 % of them, any other wrong answer to the same images by 10.0 %.",
        ),
        (2, 2, "The network's 2 wrong answers are given by 40.0 % of them."),
    ],
)
def test_wrong_answers_of_people_are_held_against_others_where_there_are_any(
    mistakes: int, classes: int, said: str
) -> None:
    found = {"file": "h.npy", "asked": 10, "people": 0.9, "mistakes": mistakes, "shared": 0.4, "shared_by_chance": 0.1}
    assert people_sentence(found, classes).replace(words.NBSP, " ").endswith(said)
