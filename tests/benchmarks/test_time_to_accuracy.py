"""Time to accuracy: what is read from a run, and a real run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks import time_to_accuracy
from tests.support.rank_processes import program
from vgg_ddp.errors import UserError

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]


def validation(step: int, epoch: float, seconds: float, accuracy: float) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "seconds": seconds, "accuracy": accuracy, "split": "validation"}


def test_the_first_validation_at_the_target_counts() -> None:
    rows = [
        {**validation(5, 0.5, 2.0, 0.99), "split": "train"},
        validation(10, 1.0, 5.0, 0.4),
        validation(20, 2.0, 10.0, 0.6),
        validation(30, 3.0, 15.0, 0.5),
        validation(40, 4.0, 20.0, 0.8),
    ]
    found = time_to_accuracy.reached(rows, 0.6)
    assert found is not None
    assert found["seconds"] == 10.0
    assert time_to_accuracy.reached(rows, 0.81) is None


def test_recipes_are_configurations_and_the_first_with_a_word_more() -> None:
    found = time_to_accuracy.recipes(["a/one.yaml", "b/two.yaml", "seed=3"], ["ema=0"])
    assert [(recipe.name, recipe.config, recipe.words) for recipe in found] == [
        ("one", "a/one.yaml", ("seed=3",)),
        ("two", "b/two.yaml", ("seed=3",)),
        ("with ema=0", "a/one.yaml", ("seed=3", "ema=0")),
    ]
    assert [recipe.name for recipe in time_to_accuracy.recipes(["a/x.yaml", "b/x.yaml"], [])] == [
        "a/x.yaml",
        "b/x.yaml",
    ]


def test_the_table_pairs_seeds_and_counts_those_over_the_target() -> None:
    """The interval is scipy's of a paired t-test."""
    whole, without = [0.90, 0.92, 0.91], [0.88, 0.91, 0.905]
    runs = [
        {"recipe": name, "seconds": 5.0 if accuracy >= 0.9 else None, "final_validation_accuracy": accuracy}
        | {"train_seconds": 9.0, "seed": seed}
        for seed, pair in enumerate(zip(whole, without))
        for name, accuracy in zip(("all", "with ema=0"), pair)
    ]
    first, second = time_to_accuracy.table(runs, 0.9)
    assert (first["reached"], second["reached"]) == (3, 2)
    assert second["share_over_target"] == pytest.approx([2 / 3, *stats.binomtest(2, 3).proportion_ci(method="wilson")])
    interval = stats.ttest_rel(without, whole).confidence_interval()
    assert second["against_first"]["mean_interval"] == pytest.approx([interval.low, interval.high])
    assert first["against_first"]["mean"] == 0
    _, third = time_to_accuracy.table([*runs[:3], {**runs[0], "recipe": "other", "seed": 7}], 0.9)[-2:]
    assert third["against_first"] is None


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return program("benchmarks.time_to_accuracy", *words, folder=ROOT)


def test_two_seeds(few_digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    keys = [f"data.source={few_digits}", "data.image_size=16", "data.train_sizes=[]", "network=vgg_tiny"]
    keys += ["epochs=1", "min_steps=2", "min_steps_per_epoch=1", "batch=64", "data.validation=0.1"]
    keys += ["nproc=1", "threads=1", "analysis.budget=none"]
    kept = ["--keep", str(tmp_path / "runs")]
    done = run("configs/quickstart.yaml", *keys, "--target", "0.05", "--seeds", "2", "--json", str(file), *kept)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {"machine", "command", "rows", "target", "target_rule", "timing_rule", "configs"} <= set(found)
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    seconds, built, epochs, pflop = found["rows"]
    assert seconds["mean"] == pytest.approx(sum(seconds["all"]) / 2)
    assert len(seconds["reference"]) == len(built["reference"]) == 2
    assert built["name"] == "seconds to the target, with building"
    for trained in found["runs"]:
        assert 0 < trained["seconds"] < trained["seconds_with_building"] < trained["command_seconds"]
        assert trained["seconds"] <= trained["train_seconds"] + 0.1
        assert trained["curve"] == [[trained["seconds"], 1.0, trained["accuracy_then"], trained["pflop"]]]
    assert epochs["least"] >= 1
    assert pflop["least"] > 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.json"
    done = run("--runs", str(tmp_path / "runs"), "--target", "0.05", "--json", str(again))
    assert done.returncode == 0, done.stderr
    read = json.loads(again.read_text())
    assert read["runs"] == [{**trained, "recipe": "quickstart", "command_seconds": None} for trained in found["runs"]]
    assert read["rows"][0]["mean"] == seconds["mean"]


def finished_run(recipe: str, run: Path, target: float, command_seconds: float | None) -> dict[str, Any]:
    """A row in place of that of `time_to_accuracy.read`; the run named "unheld" holds out no images."""
    figures = {"seconds": 2.0, "epochs": 1.0, "pflop": 0.1, "accuracy_then": 0.5, "final_validation_accuracy": 0.6}
    figures["seconds_with_building"] = 2.5
    if recipe == "unheld":
        figures = dict.fromkeys(figures)  # type: ignore[assignment]
    seed = int(run.name.removeprefix("seed-"))
    curve = [[2.0, 1.0, 0.5, 0.1]] if figures["seconds"] else []
    return {"recipe": recipe, "seed": seed, **figures, "test_accuracy": 0.6, "train_seconds": 3.0, "curve": curve}


def test_a_training_that_fails_loses_none_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as not having reached the target; but a failure without any earlier result ends the benchmark."""
    well = iter([True, False, True, False, False])

    def train(recipe: time_to_accuracy.Recipe, seed: int, directory: Path) -> tuple[Path, float]:
        if next(well):
            return directory / f"seed-{seed}", 4.0
        raise UserError("the training has diverged")

    for name, value in {"train": train, "read": finished_run, "reference": lambda device: lambda: 1.0}.items():
        monkeypatch.setattr(time_to_accuracy, name, value)
    file = tmp_path / "found.json"
    words = ["configs/quickstart.yaml", "--leave-out", "ema=0", "--target", "0.4", "--seeds", "2", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["time_to_accuracy", *words])
    time_to_accuracy.main()
    found = json.loads(file.read_text())
    assert [row["reached"] for row in found["recipes"]] == [2, 0]
    assert found["runs"][1]["failed"] == "the training has diverged"
    assert {(row["recipe"], row["target"]) for row in found["rows"]} == {("quickstart", 0.4)}
    assert "with ema=0, seed 1: not reached; the training has diverged" in capsys.readouterr().out
    with pytest.raises(UserError, match="diverged"):
        time_to_accuracy.main()


def test_finished_runs_that_held_no_images_out_are_shown_without_an_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("held", "unheld"):
        run = tmp_path / name / "seed-0"
        (run / "evaluation").mkdir(parents=True)
        (run / "evaluation" / "summary.json").touch()
        (run / "config.yaml").write_text("network: vgg11\n")
    monkeypatch.setattr(time_to_accuracy, "read", finished_run)
    monkeypatch.setattr("sys.argv", ["time_to_accuracy", "--runs", str(tmp_path), "--target", "0.4"])
    time_to_accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert "unheld, seed 0: not reached; - at the end" in lines
    assert lines[-1].split() == ["unheld", "-", "3.0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["configs/none.yaml", "--target", "0.5"], "configs/none.yaml does not exist"),
        (["configs/quickstart.yaml", "data.validation=0", "--target", "0.5"], "data.validation=0 holds no images out"),
        (["--runs", "configs", "--target", "0.5"], "configs holds no finished run"),
        (["--runs", "configs", "configs/quickstart.yaml", "--target", "0.5"], "name no configuration"),
        (["configs/quickstart.yaml", "netwrk=vgg11", "--target", "0.5"], "netwrk"),
    ],
)
def test_a_mistake_gets_one_line(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_target_that_no_accuracy_reaches_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["time_to_accuracy", "configs/quickstart.yaml", "--target", "94"])
    with pytest.raises(UserError, match="--target 94 is no share from 0 to 1"):
        time_to_accuracy.main()
