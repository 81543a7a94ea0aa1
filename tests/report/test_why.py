"""What the report says of the causes of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.pages import decoded, page_of, section
from tests.support.runs import CLASSES, change_json, make_run
from vgg_ddp.analysis import slices
from vgg_ddp.evaluation.changes import CHANGES
from vgg_ddp.report import words
from vgg_ddp.report.sections.reliance import MEANINGS


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
