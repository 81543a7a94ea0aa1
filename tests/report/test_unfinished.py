"""Runs that are under way, or ended before their time: the live page, and what `vgg-ddp report` says of them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.pages import Node, Page, assert_tables_are_named, decoded, section
from tests.support.rank_processes import Launch, start, step, vgg_ddp, wait_until
from tests.support.run_folders import latest, metrics, stop
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import EXIT_USER_ERROR
from vgg_ddp.report import live, words, write_report
from vgg_ddp.run import outcome
from vgg_ddp.run.directory import RunDirectory

TWO_EPOCHS = ("min_steps=16", "data.validation=0.2", "checkpoint.every_steps=3")


def read(path: Path) -> Node:
    page = Page(path.read_text(encoding="utf-8")).root
    assert_tables_are_named(page)
    return page


def note(page: Node) -> str:
    """What the page says first of the state of the run."""
    return next(part for part in page.all("main")[0].parts if isinstance(part, Node)).text


def reported(run: Path, folder: Path) -> tuple[list[str], Node]:
    """`vgg-ddp report` from another folder: what it prints, and the page."""
    done = vgg_ddp("report", str(run), folder=folder)
    assert done.returncode == 0, done.stderr
    *said, page = done.stdout.splitlines()
    return said, read(Path(page))


def reloads(page: Node) -> bool:
    return bool(page.all("meta", **{"http-equiv": "refresh"})) and bool(page.all("button", id="reload"))


def test_a_killed_run(launch: Launch, runs: Path, tmp_path: Path) -> None:
    """While it runs the page reloads; once killed, the report says so and gives a command that continues the run."""
    run = runs / "killed"
    ranks = launch("killed", *TWO_EPOCHS, pause=step(12))
    wait_until(ranks.paused, ranks)
    page = read(run / "report/live.html")
    assert reloads(page)
    assert note(page).startswith("Running.")
    assert "Step 8 of 16" in section(page, "story").text
    assert len(section(page, "training").all("svg")) == 4
    assert len(section(page, "classes").table()) == 10
    said, page = reported(run, tmp_path)
    assert note(page) == "Running. It is being trained; the last figures are of step 12, epoch 1.50."
    ranks.send(9)
    ranks.wait()
    said, page = reported(run, tmp_path)
    assert note(page).startswith("Interrupted. It was killed, or lost with its machine, after step 12, epoch 1.50.")
    assert said == [f"{run}: {note(page).removeprefix('Interrupted. ')}"]
    assert not reloads(page)
    assert "network: vgg_tiny" in section(page, "configuration").text
    assert dict(section(page, "environment").table())["world_size"] == "1"
    (command,) = page.all("code")
    assert note(page).endswith(f"To go on from step 9: {command.text}")
    begun, train, *words = shlex.split(command.text)
    assert (begun, train) == ("vgg-ddp", "train")
    ranks = start("vgg_ddp.train", words, 1, runs / "continued output")
    assert ranks.wait() == [0], ranks.stderr
    assert [row["step"] for row in metrics(run) if row["scope"] == "steps"] == list(range(1, 17))
    page = read(run / "report/live.html")
    assert not reloads(page)
    assert note(page) == "Finished. The report: index.html"
    assert outcome.account(RunDirectory(run), metrics(run)) == outcome.Account()


def test_a_stopped_run(launch: Launch, runs: Path, few_digits: Path, tmp_path: Path) -> None:
    """The live page shows the pictures that it names, with the answers of the last validation."""
    run = runs / "stopped"
    stop(launch("stopped", *TWO_EPOCHS, pause=step(11)))
    _, page = reported(run, tmp_path)
    begun = "Stopped. It was stopped on request after step 11, epoch 1.38. To go on from step 11: vgg-ddp train "
    assert note(page).startswith(begun)
    shown = read(run / "report/live.html")
    assert note(shown) == note(page)
    assert not reloads(shown)
    dataset = Dataset(few_digits)
    tiles = section(shown, "pictures").all("li")
    assert len(tiles) == live.SHOWN
    for tile in tiles:
        (image,) = tile.all("img")
        found = re.fullmatch(r"validation image (\d+) of .*: (\w+), taken for (\w+)", image.attributes["alt"])
        assert found
        split = dataset.split("train")
        np.testing.assert_array_equal(decoded(image), split.decode(int(found[1])))
        assert found[2] == dataset.classes[split.labels[int(found[1])]]
        assert (tile.attributes["class"] == "right") == (found[2] == found[3])
    validated = [row for row in metrics(run) if row["split"] == "validation"]
    shares = {row[0]: row[1] for row in section(shown, "classes").table()}
    accuracy = validated[-1]["class_accuracy"]
    assert shares == {
        name: words.percent(share).replace(words.NBSP, " ") for name, share in zip(dataset.classes, accuracy)
    }


def test_a_diverged_run(launch: Launch, runs: Path, tmp_path: Path) -> None:
    run = runs / "diverged"
    assert launch("diverged", *TWO_EPOCHS, "optimizer.learning_rate=1e30").wait() == [EXIT_USER_ERROR]
    _, page = reported(run, tmp_path)
    assert note(page).startswith("Diverged. It diverged: the loss is no number after step ")
    assert note(page).endswith("resume=auto optimizer.learning_rate=2.5e+29")
    assert note(read(run / "report/live.html")) == note(page)
    assert "not a number" in section(page, "story").text
    (warning,) = [part.text for part in page.all("div", role="note") if "Before any figure" in part.text]
    assert "The training diverged: at epoch " in warning


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("network: vgg11\n")
    with pytest.raises(RuntimeError), outcome.recorded(run):
        assert outcome.account(run, []).state == "Interrupted"  # as no process holds the folder
        raise RuntimeError("the GPU fell\nout of its slot")
    page = read(write_report(tmp_path, None))
    assert note(page).startswith(
        "Failed. It failed after no step: the GPU fell out of its slot. To start again: vgg-ddp"
    )
    assert "There are no curves yet." in section(page, "training").text


@pytest.mark.parametrize(
    ("classes", "said"),
    [(20, "last validation"), (101, "last validation: the best 10 and the worst 10 of 100 classes")],
)
def test_of_many_classes_it_says_which_are_shown(classes: int, said: str, tmp_path: Path) -> None:
    """The last of 101 has no images."""
    accuracy = [None if k == 100 else k / 100 for k in range(classes)]
    row = {"step": 4, "epoch": 1.0, "split": "validation", "scope": "epoch", "loss": 1.0, "accuracy": 0.5}
    (tmp_path / "config.yaml").write_text("network: vgg11\n")
    (tmp_path / "data.json").write_text(json.dumps({"classes": [f"c{k}" for k in range(classes)]}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**row, "class_accuracy": accuracy}) + "\n")
    shown = section(read(write_report(tmp_path, None)), "classes")
    assert shown.all("figcaption")[0].text.endswith(said)
    assert len(shown.table()) == 20


@pytest.mark.parametrize("broken", ["outcome.json", "data.json", "environment.json", "metrics.jsonl"])
def test_a_damaged_file_is_left_out(broken: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("network: [\n")
    (tmp_path / broken).write_bytes(b'\xff{"state": 3, ')
    assert note(read(write_report(tmp_path, None))).startswith("Interrupted.")


def test_a_page_that_cannot_be_written_stops_nothing(launch: Launch, runs: Path) -> None:
    """A file stands where the folder of the report should be, until the report itself is due."""
    run = runs / "no place"
    run.mkdir()
    (run / "report").write_text("")
    ranks = launch("no place", "min_steps=2")
    assert ranks.wait() == [EXIT_USER_ERROR]  # for the report
    assert ranks.stdout.count("live.html cannot be written") == 1
    assert latest(run).name == "step-00000002"
    assert json.loads((run / "evaluation/summary.json").read_text())["images"] > 0


def test_evaluated_and_then_failed(launch: Launch, runs: Path, train: Callable[..., Path], tmp_path: Path) -> None:
    """The sections of the evaluation stay, below what has happened since."""
    run: Any = train("continued", "min_steps=2")
    before = read(run / "report/index.html")
    assert not before.all("div", **{"class": "note account"})
    stop(launch("continued", "min_steps=4", "resume=auto", pause=step(3)))
    _, page = reported(run, tmp_path)
    assert note(page).startswith("Stopped.")
    assert [s.attributes for s in page.all("section")] == [s.attributes for s in before.all("section")]


@pytest.mark.parametrize(
    ("why", "loss", "told"),
    [
        ("a bug", None, True),
        ("a bug", 1.0, False),
        ("20 steps in a row: the training has diverged; set resume", 1.0, True),
    ],
)
def test_a_training_diverged_by_its_last_loss_or_by_what_it_said(why: str, loss: float | None, told: bool) -> None:
    assert outcome.diverged([{"split": "train", "loss": loss}], why) == told
