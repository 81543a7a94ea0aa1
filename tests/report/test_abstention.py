"""What the report says of a network that may abstain from an image, or name several classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from tests.support.pages import Node, page_of, section
from tests.support.runs import CLASSES, Run, make_run, random_logits
from vgg_ddp.report import words


def shown(run: Run) -> Node:
    return section(page_of(run), "abstention")


def interval(right: int, of: int) -> str:
    low, high = binomtest(right, of).proportion_ci(method="wilson")
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def sure_and_right(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """How sure it is of each answer, and whether that is right."""
    return softmax(run.predictions.logits.astype(np.float64), axis=1).max(axis=1), run.prediction == run.label


def test_what_it_answers_where_it_may_say_that_it_does_not_know(tmp_path: Path) -> None:
    """The sentence is about the highest confidence threshold at which it still answers half of the images."""
    label = np.arange(400) % 10
    prediction = np.where(np.random.default_rng(2).random(400) < 0.7, label, (label + 3) % 10)
    run = make_run(tmp_path / "run", label=label, logits=1.6 * random_logits(label, prediction, 10))
    sure, right = sure_and_right(run)
    rows = []
    for least in (50, 60, 70, 80, 90, 95, 99):
        answered = right[sure >= least / 100]
        accuracy = f"{100 * answered.mean():.1f} %"
        share = f"{100 * len(answered) / 400:.1f} %"
        rows.append([f"{least} %", str(len(answered)), share, accuracy, interval(answered.sum(), len(answered))])
    assert len({row[1] for row in rows}) == 7
    found = shown(run)
    assert found.table() == rows
    least, _, share, accuracy, ends = [row for row in rows if float(row[2].removesuffix(" %")) >= 50][-1]
    assert least not in ("50 %", "99 %")
    assert found.all("p")[0].text == (
        f"Asked only where it is at least {least} sure, it answers {share} of these 400 test images and is right in "
        f"{accuracy} of its answers (95 % interval {ends})."
    )


def test_a_network_that_is_never_sure_answers_nothing(tmp_path: Path) -> None:
    label = np.arange(400) % 10
    run = make_run(tmp_path / "run", label=label, logits=0.01 * random_logits(label, label, 10))
    assert sure_and_right(run)[0].max() < 0.5
    found = shown(run)
    assert found.all("p")[0].text == (
        "It is nowhere at least 50 % sure on these 400 test images: there it would not answer."
    )
    assert [row[1:] for row in found.table()] == [["0", "0 %", words.DASH, ""]] * 7


def test_the_curve_is_the_accuracy_of_its_surest_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sure, right = sure_and_right(run)
    of_surest = right[np.argsort(-sure)].cumsum() / np.arange(1, 401)
    (line,) = json.loads(shown(run).all("svg")[0].attributes["data-chart"])["lines"]
    answered = np.round(400 * np.array(line["x"])).astype(int)
    assert len(answered) == 100 and (answered[0], answered[-1]) == (1, 400)
    np.testing.assert_allclose(line["x"], answered / 400, rtol=1e-4)
    np.testing.assert_allclose(line["y"], of_surest[answered - 1], rtol=1e-4)


def sets_by_hand(run: Run) -> tuple[float, np.ndarray]:
    """The least probability at which a class is named, from the first 200 images; and the classes named for all."""
    probabilities = softmax(run.predictions.logits.astype(np.float64), axis=1)
    of_label = probabilities[np.arange(400), run.label]
    least = np.sort(of_label[:200])[-math.ceil(201 * 0.9)]
    return least, probabilities >= least


def sets_words(run: Run) -> str:
    return next(p.text for p in shown(run).all("p") if "several classes" in p.text or "not known" in p.text)


@pytest.mark.parametrize(("share", "missed"), [(0.8, False), (0.8, True), (0.99, False)])
def test_what_it_takes_to_have_the_right_name_among_several(tmp_path: Path, share: float, missed: bool) -> None:
    """For a given accuracy, the same for all classes, or with a class that is never named beyond the held-out images.

    A network that is right more often than promised names no class where it is least confident.
    """
    label = np.arange(400) % 10
    prediction = np.where(np.random.default_rng(3).random(400) < share, label, (label + 1) % 10)
    logits = random_logits(label, prediction, 10)
    logits[200:, 4] -= 20 * missed
    run = make_run(tmp_path / "run", label=label, logits=logits)
    least, named = sets_by_hand(run)
    covered, names = named[np.arange(400), label], named.sum(axis=1)
    assert (names == 0).any() == (share > 0.9)
    said = (
        f"It may also name several classes: all with a probability of {100 * least:.1f} % or more, so that in 90 % of images "
        "like the half of them the right one is among them (conformal prediction). On the test images it is in "
        f"{100 * covered.mean():.1f} % (95 % interval {interval(covered.sum(), 400)}), with {names.mean():.2f} names in the "
        f"mean; one name in {100 * (names == 1).mean():.1f} %, none in {words.percent((names == 0).mean())}."
    )
    if missed:
        of_class = f"{CLASSES[4]} {100 * covered[label == 4].mean():.1f} %"
        said += f" Less often than the others, by more than chance: {of_class}."
    assert sets_words(run) == said.replace(words.NBSP, " ")


@pytest.mark.parametrize("images", [150, 1])
def test_where_too_few_images_were_held_out_no_sets_are_promised(tmp_path: Path, images: int) -> None:
    run = make_run(tmp_path / "run", images=images)
    why = "half of them, fewer than the 100 that it takes" if images == 150 else "half of them"
    assert sets_words(run) == f"How many names it takes to have the right one among them is not known: {why}."
