"""Runs side by side: what changed, and whether it is more than chance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from tests.support.pages import Node, Page, assert_tables_are_named, section
from tests.support.runs import CLASSES, Run, change_json, make_dataset, make_run
from vgg_ddp import cli
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.report import write_recipes, write_side_by_side


def compared(runs: list[Run], path: Path) -> Node:
    return read(write_side_by_side([run.path for run in runs], runs[0].dataset, path / "comparison.html"))


def read(path: Path) -> Node:
    page = Page(path.read_text(encoding="utf-8")).root
    assert_tables_are_named(page)
    return page


@pytest.fixture
def first(tmp_path: Path) -> Run:
    return make_run(tmp_path / "first")


def better(first: Run, path: Path, gained: int) -> Run:
    """A run that gets `gained` images right that `first` got wrong."""
    wrong = np.flatnonzero(first.prediction != first.label)[:gained]
    prediction = first.prediction.copy()
    prediction[wrong] = first.label[wrong]
    return make_run(path, label=first.label, prediction=prediction, dataset=first.dataset)


def test_a_clear_difference_is_told_with_mcnemar(first: Run, tmp_path: Path) -> None:
    story = section(compared([first, better(first, tmp_path / "second", 60)], tmp_path), "story").text
    assert "Is second better than first?Yes" in story
    assert "The difference is +15.00 points" in story
    assert "0 test images only first gets right, 60 only second" in story
    assert binomtest(60, 60).pvalue < 1e-4 and "McNemar p below 0.0001" in story


def test_a_small_difference_may_be_chance(first: Run, tmp_path: Path) -> None:
    page = compared([first, better(first, tmp_path / "second", 3)], tmp_path)
    story = section(page, "story").text
    assert "Is second better than first?No more than chance" in story
    assert f"McNemar p {binomtest(3, 3).pvalue:.2g}" in story
    rows = section(page, "classes").table()
    assert [row[0] for row in rows] == CLASSES
    assert all("better" not in str(cell.attributes) for cell in section(page, "classes").all("td"))


def test_what_changed_in_the_configuration_is_listed(first: Run, tmp_path: Path) -> None:
    second = better(first, tmp_path / "second", 5)
    (second.path / "config.yaml").write_text(
        "network: vgg16\nbatch: 512\noptimizer:\n  learning_rate: 0.4\nrun:\n  dir: x\n"
    )
    third = better(first, tmp_path / "third", 9)
    page = compared([first, second, third], tmp_path)
    assert section(page, "changes").table() == [
        ["batch", "256", "512", "256"],
        ["optimizer.learning_rate", "–", "0.4", "–"],
    ]
    assert len(section(page, "training").all("svg")) == 4
    keys = [span.text for span in section(page, "training").all("div", **{"class": "key"})[0].all("span")]
    assert keys == ["first", "second", "third"]


def test_the_pictures_are_those_that_one_of_two_gets_right(first: Run, tmp_path: Path) -> None:
    second = make_run(tmp_path / "second", label=first.label, dataset=first.dataset, seed=11)
    page = compared([first, second], tmp_path)
    only_first, only_second = section(page, "pictures").all("ul")
    for shown, wins, loses in ((only_first, first, second), (only_second, second, first)):
        found = [int(re.findall(r"image (\d+)", image.attributes["alt"])[0]) for image in shown.all("img")]
        assert len(found) == 9
        assert (wins.prediction[found] == first.label[found]).all()
        assert (loses.prediction[found] != first.label[found]).all()


@pytest.mark.parametrize("how", ["other data", "other labels"])
def test_runs_on_different_images_are_shown_without_a_test(first: Run, tmp_path: Path, how: str) -> None:
    label = (first.label + 1) % 10 if how == "other labels" else first.label
    dataset = make_dataset(tmp_path / "data", label, CLASSES)
    second = make_run(tmp_path / "second", label=label, dataset=dataset)
    change_json(second.path / "environment.json", data_sha256="00" if how == "other data" else first.dataset.sha256)
    page = compared([first, second], tmp_path)
    assert "They were evaluated on different images" in section(page, "story").text
    assert not section(page, "pictures").all("img")
    assert len(section(page, "classes").table()) == 10


def test_two_networks_are_not_taken_for_two_recipes(first: Run, tmp_path: Path) -> None:
    second = better(first, tmp_path / "second", 60)
    for run, seed in ((first, 0), (second, 1)):
        (run.path / "config.yaml").write_text(f"network: vgg16\nseed: {seed}\n")
    story = section(compared([first, second], tmp_path), "story").text
    assert "They differ in their seed alone. This compares these networks on these images." in story
    (second.path / "config.yaml").write_text("network: vgg11\nseed: 1\n")
    assert "in their seed alone" not in section(compared([first, second], tmp_path), "story").text


def trained(first: Run, path: Path, right: float, seed: int, recipe: str = "") -> Path:
    """A run that names about the share `right` of the images correctly, each class alike."""
    random = np.random.default_rng(seed)
    prediction = np.where(random.random(len(first.label)) < right, first.label, (first.label + 1) % 10)
    run = make_run(path, label=first.label, prediction=prediction, dataset=first.dataset)
    (run.path / "config.yaml").write_text(f"network: vgg16\nseed: {seed}\n{recipe}")
    return run.path


@pytest.mark.seconds
def test_recipes_are_compared_by_the_means_over_their_seeds(first: Run, tmp_path: Path) -> None:
    old = [trained(first, tmp_path / f"old-{seed}", 0.7, seed) for seed in range(3)]
    new = [trained(first, tmp_path / f"new-{seed}", 0.9, seed, "batch: 512\n") for seed in range(3, 6)]
    page = read(write_recipes(old, new, tmp_path / "recipes.html"))
    story = section(page, "story").text
    assert "Is the recipe of new-3 better than that of old-0?Yes" in story
    accuracies = [
        [json.loads((run / "evaluation/summary.json").read_text())["accuracy"] for run in side] for side in (old, new)
    ]
    tested = ttest_ind(accuracies[1], accuracies[0], equal_var=False)
    low, high = (100 * end for end in tested.confidence_interval(0.95))
    assert f"interval over seeds {low:+.2f} to {high:+.2f}" in story
    assert "in the mean of 3 seeds" in story and "on the same 400 test images" in story
    assert ["batch", "–", "–", "–", "512", "512", "512"] in section(page, "changes").table()
    assert len(section(page, "classes").table()) == 10
    same = [trained(first, tmp_path / f"same-{seed}", 0.7, seed) for seed in range(6, 9)]
    page = read(write_recipes(old, same, tmp_path / "recipes.html"))
    assert "No more than chance" in section(page, "story").text


@pytest.mark.seconds
def test_the_command_holds_the_runs_that_it_names_first_against_the_others(
    first: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [trained(first, tmp_path / f"old-{seed}", 0.7, seed) for seed in range(2)]
    new = [trained(first, tmp_path / f"new-{seed}", 0.9, seed) for seed in range(2, 4)]
    expected = write_recipes(old, new, tmp_path / "expected.html").read_bytes()
    assert b"Is the recipe of new-2 better than that of old-0?" in expected
    words = ["report", *map(str, new), "--against", *map(str, old)]
    for more, page in (
        ([], new[0] / "report/recipes.html"),
        (["--out", str(tmp_path / "page.html")], tmp_path / "page.html"),
    ):
        assert cli.main([*words, *more]) == 0
        assert capsys.readouterr() == (f"{page}\n", "")
        assert page.read_bytes() == expected
    for alone, given in ((new[0], [new[0], "--against", *old]), (old[0], [*new, "--against", old[0]])):
        assert cli.main(["report", *map(str, given), "--out", str(tmp_path / "one.html")]) == EXIT_USER_ERROR
        printed = capsys.readouterr()
        assert printed.out == "" and f"{alone} alone tells nothing of its recipe" in printed.err
    assert not (tmp_path / "one.html").exists()


@pytest.mark.seconds
def test_one_run_is_no_recipe_and_one_seed_twice_is_one_run(first: Run, tmp_path: Path) -> None:
    runs = [trained(first, tmp_path / f"run-{seed}", 0.7, seed) for seed in range(3)]
    again = trained(first, tmp_path / "again", 0.7, 0)
    page = tmp_path / "recipes.html"
    with pytest.raises(UserError, match=f"{runs[0]} alone tells nothing of its recipe"):
        write_recipes(runs[:1], runs[1:], page)
    with pytest.raises(UserError, match="again and run-0 have the same seed, 0"):
        write_recipes([runs[0], again], runs[1:], page)
    label = (first.label + 1) % 10
    other = make_run(tmp_path / "other", label=label)
    with pytest.raises(UserError, match="other was evaluated on other images than run-0"):
        write_recipes(runs[:2], [runs[2], other.path], page)
    assert not page.exists()


def test_mistakes_get_one_line(first: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7 runs side by side are too many"):
        write_side_by_side([first.path] * 7, None, tmp_path / "x.html")
    with pytest.raises(UserError, match="has no evaluation yet; run: vgg-ddp evaluate"):
        write_side_by_side([first.path, tmp_path], None, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_two_runs_of_one_name_are_told_apart(first: Run, tmp_path: Path) -> None:
    twin = better(first, tmp_path / "elsewhere" / "first", 5)
    headings = section(compared([first, twin], tmp_path), "story").all("th", scope="col")
    assert [heading.text for heading in headings] == [str(first.path), str(twin.path)]
