"""What the report says of groups of classes, and why it has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.pages import Node, page_of, section
from tests.support.runs import ANIMALS, CLASSES, VEHICLES, Run, change_json, make_run
from vgg_ddp.report import words
from vgg_ddp.report.sections import matrices

NAMED = {"animals": ANIMALS, "vehicles": VEHICLES}


def summary_of(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "evaluation/summary.json").read_text())


def column(table: Node, name: str) -> dict[str, str]:
    """The cells of the column headed `name`, keyed by the first cell of their row."""
    head = [cell.text for cell in table.all("thead")[0].all() if cell.tag == "th"]  # the bars' head is a <td>
    return {row[0]: row[head.index(name)] for row in table.table()}


def plain(text: str) -> str:
    return text.replace(words.NBSP, " ")


def test_each_group_has_its_share_and_what_chance_would_make_of_it(tmp_path: Path) -> None:
    label = np.arange(400) % 9  # no truck
    named = {"animals": ANIMALS, "vehicles": VEHICLES[:-1]}
    run = make_run(tmp_path / "run", label=label, groups={**named, "lorries": ["truck"]})
    table = section(page_of(run), "groups").all("table")[0]
    found = summary_of(run)["groups"]
    shares: dict[str, list[str]] = {"in the group": [], "by chance": [], "right class": []}
    for members in named.values():
        of_group = np.isin(np.array(CLASSES), members)
        answers = run.prediction[of_group[label]]
        shares["in the group"].append(f"{100 * of_group[answers].mean():.1f} %")
        shares["right class"].append(f"{100 * (answers == label[of_group[label]]).mean():.1f} %")
    shares["by chance"] = [f"{100 * found[name]['within_by_chance']:.1f} %" for name in named]
    assert len({*shares["in the group"], *shares["by chance"], *shares["right class"]}) == 6
    for head, expected in shares.items():
        assert column(table, head) == {**dict(zip(named, expected)), "lorries": words.DASH}, head


def test_all_groups_together_are_held_against_chance(tmp_path: Path) -> None:
    pets = {"pets": ["cat", "dog"], "birds": ["bird"]}
    run = make_run(tmp_path / "run", groups=pets)
    group_of = np.array([next((k for k, of in enumerate(pets.values()) if name in of), -1) for name in CLASSES])
    of_groups = group_of[run.label] >= 0
    share = (group_of[run.prediction] == group_of[run.label])[of_groups].mean()
    summary = summary_of(run)
    together = summary["groups_together"]
    said = (
        f"{100 * share:.1f} % of the {of_groups.sum()} test images of these groups are taken for a class of their own group; "
        f"{100 * together['within_by_chance']:.1f} % would be expected if the wrong answers had nothing to do with the groups "
        f"(p {together['p_value']:.2g})."
    )
    assert plain(matrices.kind_sentence(summary)) == said
    assert f"{said} The groups are the data set's own." in section(page_of(run), "groups").text
    assert matrices.kind_sentence({**summary, "groups_together": None}) == ""
    assert matrices.kind_sentence({**summary, "groups_together": {**together, "images": 0}}) == ""


def taken_for_their_kind() -> tuple[np.ndarray, np.ndarray]:
    """Labels of 400 images, and answers a third of which are wrong, but in the right group."""
    random = np.random.default_rng(2)
    label = np.arange(400) % 10
    is_animal = np.isin(CLASSES, ANIMALS)
    others = [np.flatnonzero((is_animal == is_animal[k]) & (np.arange(10) != k)) for k in range(10)]
    return label, np.where(random.random(400) < 1 / 3, [random.choice(others[k]) for k in label], label)


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("data set", "The groups are the data set's own."),
        ("configuration", "The groups are those of analysis.groups."),
        (
            "validation images",
            "Nobody named groups: these were found on the validation images, as classes that the network takes for one "
            "another there, and are judged here on the test images.",
        ),
    ],
)
def test_who_named_the_groups_is_said(tmp_path: Path, origin: str, said: str) -> None:
    label, prediction = taken_for_their_kind()
    named = {} if origin == "validation images" else NAMED
    run = make_run(tmp_path / "run", label=label, prediction=prediction, groups=named)
    if origin == "configuration":
        change_json(run.path / "evaluation/summary.json", groups_from=origin)
    summary = summary_of(run)
    assert summary["groups_from"] == origin
    assert sorted(sorted(group["classes"]) for group in summary["groups"].values()) == [VEHICLES, ANIMALS]
    shown = section(page_of(run), "groups").all("p")[0].text
    assert shown.endswith(f"100 %. {plain(matrices.kind_sentence(summary))} {said}")


@pytest.mark.parametrize("why", ["chance", "nothing", "no validation images", ""])
def test_a_page_without_groups_says_why_and_how_to_name_some(tmp_path: Path, why: str) -> None:
    run = make_run(
        tmp_path / "run", images=1 if why == "no validation images" else 240, seed=8 if why == "chance" else 7
    )
    if not why:
        change_json(run.path / "evaluation/summary.json", groups_words="")
    together = summary_of(run)["groups_together"] or {"within_accuracy": 0, "within_by_chance": 0}
    said = {
        "chance": ", and those found on 120 validation images keep {within_accuracy:.1%} of these images in their group, which "
        "is no more than chance ({within_by_chance:.1%})",
        "nothing": ", and no classes belong together in the 120 validation images",
        "no validation images": ", and without images held out for validation none can be looked for: groups must be found on "
        "other images",
        "": "",
    }[why].format(**together)
    shown = section(page_of(run), "groups")
    assert not shown.all("table")
    assert [paragraph.text for paragraph in shown.all("p")] == [
        f"There are no groups of classes: the data set names none{said}. Name your own with analysis.groups (docs/report.md)."
    ]
