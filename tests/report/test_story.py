"""The story at the top of the report, and what stands before it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
)

from tests.support.pages import Node, page_of, section
from tests.support.runs import change_json, make_run
from vgg_ddp.analysis import course, duplicates
from vgg_ddp.analysis.standing import of_classes
from vgg_ddp.report import reading, words
from vgg_ddp.report.sections import story
from vgg_ddp.run.directory import RunDirectory


def test_names_that_are_numbers_are_set_off_from_figures(tmp_path: Path) -> None:
    """Instead of "0 0 %" or "an 8 139 times"."""
    label = np.repeat(np.arange(10), 60)
    prediction = np.where(np.random.default_rng(2).random(600) < 0.6, label, (label + 1) % 10)
    prediction = np.where(label == 9, 9, np.where(label == 0, 1, prediction))
    run = make_run(tmp_path / "run", [str(k) for k in range(10)], label=label, prediction=prediction)
    cards = section(page_of(run), "story").all("dd")
    assert re.match(r"“9” 100 % “0” 0 %", cards[0].text)
    assert not any(re.search(r"(?<![“\d.,])\b\d \d", card.text) for card in cards)


def story_of(confusion: np.ndarray) -> str:
    classes = [f"c{k}" for k in range(len(confusion))]
    return story.extremes_sentence(classes, confusion, of_classes(confusion)).replace(words.NBSP, " ")


def test_best_and_worst_are_said_only_where_they_are_more_than_chance() -> None:
    def confusion(*right: int, images: int = 200) -> np.ndarray:
        wrong = np.roll(np.diag([images - count for count in right]), 1, axis=1)
        return np.diag(right) + wrong

    assert story_of(confusion(160, 165, 158, 163)) == (
        "No class is recognised better or worse than the others by more than chance: they lie between 79.0 % and 82.5 %."
    )
    assert story_of(confusion(160, 165, 100, 163)) == (
        "It recognises “c1” best (82.5 %; “c3” and “c0” are too close to be told from it) and “c2” worst (50.0 %)."
    )
    assert story_of(confusion(185, 184, 186, 100, 103)).endswith(
        "and “c3” worst (50.0 %; “c4” is too close to be told from it)."
    )
    tiny = confusion(160, 165, 158, 163)
    tiny[0] = [0, 1, 0, 0]
    assert "“c0” worst" not in story_of(tiny)
    assert story_of(tiny).endswith("Fewer than 10 images show “c0”: too few to call a class best or worst.")


@pytest.mark.seconds
def test_it_says_whether_the_training_was_at_its_end(tmp_path: Path) -> None:
    """On 40 validation images, two accuracies 15 points apart may come from the same network."""
    run = make_run(tmp_path / "run")
    metrics = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    (run.path / "config.yaml").write_text("network: vgg11\ndata: {validation: 0.1}\n")

    def card(*accuracies: float, rate: float = 1.0) -> str:
        validations = [
            {"step": k, "epoch": k, "split": "validation", "scope": "epoch", "loss": 1.0, "accuracy": accuracy}
            for k, accuracy in enumerate(accuracies, start=1)
        ]
        steps = [{**row, "lr": 1.0} for row in rows if row["split"] == "train"]
        steps[-1]["lr"] = rate
        metrics.write_text("".join(json.dumps(row) + "\n" for row in [*steps, *validations]))
        cards = section(page_of(run), "story")
        names = [name.text for name in cards.all("dt")]
        return cards.all("dd")[names.index("Did the training go well?")].text

    assert card(0.2, 0.4, 0.5, 0.8).startswith(
        "still improvingThe validation accuracy rose from 50.0 % after epoch 3 to 80.0 % after epoch 4: with more epochs"
    )
    assert card(0.2, 0.4, 0.7, 0.8).startswith(
        "yesThe validation accuracy was 70.0 % after epoch 3 and 80.0 % after epoch 4"
    )
    fallen = card(0.2, 0.9, 0.8, 0.6)
    assert fallen.startswith("for a whileThe validation accuracy was best, 90.0 %, after epoch 2, and is 60.0 %")
    assert fallen.endswith("evaluate.checkpoint=best takes the network of that epoch. The curves.")
    best = run.path / "checkpoints/step-00000002"
    best.mkdir(parents=True)
    (best / "manifest.json").write_text("{}")
    best.with_name("best").write_text(best.name)
    change_json(run.path / "evaluation/summary.json", checkpoint_sha256=hashlib.sha256(b"{}").hexdigest())
    assert card(0.2, 0.9, 0.8, 0.6).endswith("This page is of the network of that epoch. The curves.")
    assert "begin anew" not in card(0.2, 0.4, 0.5, 0.8)
    assert "begin anew" in card(0.2, 0.4, 0.5, 0.8, rate=0.01)
    assert "Did the training go well?" not in section(page_of(make_run(tmp_path / "once", epochs=1)), "story").text


def test_what_needs_no_network_stands_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    train, test = (np.stack([run.dataset.split(name).decode(k) for k in range(400)]) for name in ("train", "test"))
    answers = run.dataset.split("train").labels[
        duplicates.nearest(duplicates.grey(test), duplicates.grey(train)).others[:, 0]
    ]
    share = accuracy_score(run.label, answers)
    most = np.bincount(run.label).max() / 400
    said = section(page_of(run), "story").text
    assert f"Guessing is right for 10.0 %, always answering the most frequent class for {100 * most:.1f} %" in said
    assert f"of the most alike of 400 training images (8 x 8 grey pixels) for {100 * share:.1f} %" in said


def answer_to(question: str, page: Node) -> str:
    """The text of a question's card; empty if the page has no such card."""
    cards = section(page, "story")
    names = [name.text for name in cards.all("dt")]
    return cards.all("dd")[names.index(question)].text if question in names else ""


def test_the_answer_is_the_best_that_needs_no_network(tmp_path: Path) -> None:
    label = np.repeat([0, 1], [90, 10])
    run = make_run(tmp_path / "run", ["common", "rare"], label, np.where(np.arange(100) < 15, 1 - label, label))
    path = run.path / "evaluation/summary.json"
    data = json.loads(path.read_text())["data"]
    for correct, best in ((70, "90.0 %"), (95, "95.0 %")):
        neighbour = {"correct": correct, "images": 100, "training_images": 500}
        change_json(path, data={**data, "nearest_neighbour": neighbour})
        said = answer_to("Is it better than what needs no network?", page_of(run))
        assert said.startswith(f"{best} without one")
        assert f"(8 x 8 grey pixels) for {correct}.0 %; the network for 85.0 % of the 100 test images." in said


def test_it_says_of_how_many_images_the_nearest_were_looked_for() -> None:
    confusion = np.full((10, 10), 100)
    neighbour = {"correct": 2000, "images": 5859, "training_images": 29_296}
    said = story.baselines_sentence(confusion, neighbour).replace(words.NBSP, " ")
    assert "for 34.1 % on 5,859 of 10,000 test images; the network for 10.0 % of the 10,000 test images." in said


def test_where_one_class_alone_stands_out_it_says_on_which_end(tmp_path: Path) -> None:
    label = np.repeat(np.arange(10), 36)
    prediction = np.where((label == 8) & (np.arange(360) % 36 < 10), 3, label)
    page = page_of(make_run(tmp_path / "run", [str(k) for k in range(10)], label, prediction))
    assert answer_to("What is it best at, and what worst?", page).startswith("worst: “8” 72.2 %")


def test_the_quiz_is_offered_only_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    question = "Would a person have known?"
    assert not answer_to(question, page_of(run, pictures=False))
    assert answer_to(question, page_of(run)).endswith("Take the quiz.")


def test_what_is_remembered_is_told_from_what_is_learned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "does it remember" not in section(page_of(run), "story").text
    summary, accuracy = run.path / "evaluation/summary.json", accuracy_score(run.label, run.prediction)
    change_json(summary, training_images={"images": 2000, "accuracy": 0.95})
    said = section(page_of(run), "story").text
    assert "With the evaluated weights it names 95.0 % of 2,000 training images, without augmentation, and " in said
    assert f"{100 * accuracy:.1f} % of 400 test images: {100 * (0.95 - accuracy):+.2f} points" in said
    assert "it overfits by that much. Even of its training images it misses some" in said
    change_json(summary, training_images={"images": 2000, "accuracy": accuracy + 0.01})
    assert "no more than chance: no sign of overfitting" in section(page_of(run), "story").text
    change_json(summary, training_images={"images": 2000, "accuracy": accuracy - 0.2})
    assert "It knows new images better than those it was trained on" in section(page_of(run), "story").text


def test_a_few_test_images_say_little_of_what_is_remembered() -> None:
    """Even when all or none of them are right, nothing is certain."""
    said = story.memory_sentence({"accuracy": 1423 / 1437, "images": 1437}, 1.0, 30)
    assert said.endswith("That is no more than chance: no sign of overfitting.")
    one = story.memory_sentence({"accuracy": 0.0, "images": 1}, 0.0, 1)
    assert "interval \u221279.35 to +79.35)" in one


@pytest.mark.parametrize("configured", ["last", "best"])
def test_the_page_knows_by_its_hash_of_which_checkpoint_it_is(configured: str, tmp_path: Path) -> None:
    """Whatever the training's configuration says: an argument or a path may have selected the other one."""
    run = make_run(tmp_path / "run")
    directory, summary = RunDirectory(run.path), run.path / "evaluation/summary.json"
    directory.config.write_text(f"network: vgg11\nevaluate: {{checkpoint: {configured}}}\n")

    def of_best() -> bool:
        return reading.of_best(directory, reading.read_evaluation(run.path), reading.recipe(run.path))

    assert of_best() == (configured == "best")  # nothing else is known
    for name in ("step-00000004", "step-00000008"):
        (directory.checkpoints / name).mkdir(parents=True)
        (directory.checkpoints / name / "manifest.json").write_text(name)
    (directory.checkpoints / "best").write_text("step-00000004")
    for name, best in (("step-00000004", True), ("step-00000008", False)):
        change_json(summary, checkpoint_sha256=hashlib.sha256(name.encode()).hexdigest())
        assert of_best() == best
    (directory.checkpoints / "best").write_text("../elsewhere")
    assert of_best() == (configured == "best")


def test_of_the_best_checkpoint_the_page_does_not_advise_to_take_it() -> None:
    ending = course.Ending(0.5, 10.0, 0.6, 7.5, 0.7, 4.0, 0.05, 0.5)
    assert "evaluate.checkpoint=best takes the network of that epoch" in story.ending_sentence(ending, of_best=False)
    assert story.ending_sentence(ending, of_best=True).endswith("This page is of the network of that epoch.")


def test_half_mistakes_are_of_all_images_whatever_the_groups_leave_out() -> None:
    """Four classes of 100 images, two of which form a group; 2 of the 11 mistakes stay in it."""
    confusion = np.array([[98, 2, 0, 0], [0, 100, 0, 0], [0, 0, 95, 5], [0, 0, 4, 96]])
    groups = {"round": {"within": 200, "correct": 198, "images": 200}}
    said = story.continuum_sentence({"1": 389 / 400}, confusion, groups).replace(words.NBSP, " ")
    assert "Of its 11 mistakes 18 % keep the kind" in said and said.endswith("they make the accuracy 97.5 %.")


@pytest.mark.parametrize(
    ("within", "said"),
    [
        (10, "Its one mistake keeps the kind: counted as half a mistake, it makes the accuracy 97.5 %."),
        (9, "Its one mistake does not keep the kind."),
    ],
)
def test_a_single_mistake_keeps_the_kind_or_does_not(within: int, said: str) -> None:
    confusion = np.array([[9, 1], [0, 10]])
    groups = {"round": {"within": within, "correct": 9, "images": 10}}
    assert story.continuum_sentence({"1": 0.95}, confusion, groups).replace(words.NBSP, " ").endswith(said)


def test_a_training_that_went_astray_says_so_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "validation" and row["epoch"] == 2:
            row["loss"] = 138308.0
    change_json(run.path / "evaluation/summary.json", warnings=course.warnings(rows, run.confusion))
    first = next(part for part in page_of(run).all("main")[0].parts if isinstance(part, Node))
    assert "its validation loss rose to 1.383e+05 at epoch 2.00, where guessing gives 2.30" in first.text


def test_a_network_that_learned_nothing_says_so_first(tmp_path: Path) -> None:
    label = np.arange(400) % 10
    run = make_run(tmp_path / "run", label=label, prediction=label * 0 + 3)
    first = next(part for part in page_of(run).all("main")[0].parts if isinstance(part, Node))
    assert "learned nothing that these 400 images show: it names 10.0 % correctly" in first.text
    well = make_run(tmp_path / "well", label=label, prediction=label)
    assert "Before any figure" not in page_of(well).all("main")[0].text
