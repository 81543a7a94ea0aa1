"""`vgg-ddp study`: real trainings, killed, stopped, given up and diverged; and the page about them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.support.pages import Node, Page, assert_tables_are_named, section
from tests.support.processes import assert_gone, descendants
from tests.support.rank_processes import context, wait_until
from vgg_ddp.config import Config, load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.errors import EXIT_STOPPED, UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.study import command, learning_rate, running
from vgg_ddp.study.definition import Definition
from vgg_ddp.study.page import reach
from vgg_ddp.study.summary import Summary

pytest.importorskip("optuna")
pytestmark = pytest.mark.processes


def vgg_ddp(words: list[str], output: Path, variables: dict[str, str]) -> None:
    """Run `vgg-ddp WORDS` in a process that was forked for it."""
    from vgg_ddp import cli

    os.environ.update(variables)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.exit(cli.main(words))


class Warm:
    """Used like `subprocess.Popen`, but forked, so that torch need not be imported."""

    def __init__(self, words: list[str], output: Path, variables: dict[str, str]) -> None:
        self.process: Any = context(True).Process(target=vgg_ddp, args=(words, output, variables))  # type: ignore[attr-defined]
        self.process.start()

    def poll(self) -> int | None:
        code: int | None = self.process.exitcode
        return code

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        self.process.join()
        return int(self.process.exitcode)

    def alive(self) -> bool:
        return bool(self.process.is_alive())

    stderr = ""


def nothing_starts(*arguments: object) -> Warm:
    raise AssertionError("a finished cell is trained again")


def study_file(folder: Path, recipe: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(f"base: {recipe}\noverrides: [data.validation=0.25, optimizer.rate_batch=8]\n{text}")
    return path


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and modification time of every file below a folder, except locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


GRID = "grid: {optimizer.learning_rate: [0.01, 1e30, 0.02]}\nseeds: 2\nside_by_side: 2\n"


@pytest.fixture(scope="module")
def study(runs: Path, recipe: Path) -> Path:
    """A whole study, one configuration of which diverges."""
    path = study_file(runs, recipe, GRID)
    assert command.run(path, ["min_steps=2"], runs / "study", Warm) == 0
    return runs / "study"


def test_the_objective_is_that_of_the_checkpoint_that_is_evaluated(tmp_path: Path) -> None:
    """The best as the run has chosen it, which needs a gain of `stop.min_delta`; else the last."""
    run, definition = RunDirectory(tmp_path), Definition(base="base.yaml", grid={"batch": ["16", "32"]})
    rows = [
        {"step": step, "split": "validation", "scope": "epoch", "accuracy": accuracy, "loss": 1 - accuracy}
        for step, accuracy in ((1, 0.5), (2, 0.7), (3, 0.705), (4, 0.6))
    ]
    for checkpoint, best, expected in (("best", 0.7, 0.7), ("best", None, 0.705), ("last", 0.7, 0.6)):
        run.config.write_text(f"network: vgg11\nevaluate: {{checkpoint: {checkpoint}}}\n")
        run.summary.write_text(json.dumps({"best_validation_accuracy": best}))
        assert running.objective(run, rows, definition) == expected


def summary(study: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "summary.json").read_text())
    return found


def page(study: Path) -> Node:
    found = Page((study / "report" / "index.html").read_text(encoding="utf-8")).root
    assert_tables_are_named(found)
    return found


def test_every_cell_is_a_run_and_its_objective_is_its_validation(study: Path, few_digits: Path) -> None:
    cells = summary(study)["cells"]
    assert [(cell["values"]["optimizer.learning_rate"], cell["seed"]) for cell in cells] == [
        (rate, seed) for seed in (0, 1) for rate in ("0.01", "1e30", "0.02")
    ]
    assert [cell["ending"] for cell in cells] == ["done", "diverged", "done"] * 2
    for cell in cells:
        run = study / "runs" / cell["name"]
        config = load(run / "config.yaml")
        assert (config.seed, config.optimizer.learning_rate) == (
            cell["seed"],
            2 * float(cell["values"]["optimizer.learning_rate"]),  # doubled by optimizer.rate_batch, for a batch of 16
        )
        assert config.tracking.group == "study"
        assert cell["held_out"] == len(held_out(Dataset(few_digits), config.data, config.seed)[1]) > 30
        if cell["ending"] == "done":
            (row,) = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "validation"]
            tested = json.loads((run / "evaluation" / "summary.json").read_text())["accuracy"]
            assert (cell["objective"], cell["test_accuracy"], cell["images"]) == (row["accuracy"], tested, 32)
        else:
            assert cell["objective"] is None and "is not finite" in cell["why"]


def test_the_page_shows_what_failed_and_what_is_best(study: Path) -> None:
    found, root = summary(study), page(study)
    assert "Of 6 trainings 4 are done; 2 diverged." in root.text
    best = next(one for one in found["configurations"] if one["number"] == found["best"])
    done = [one for one in found["configurations"] if one["done"] == 2]
    assert best["mean"] == max(one["mean"] for one in done)
    assert f"learning_rate {best['values']['optimizer.learning_rate']}" in section(root, "story").text
    assert f"on the {best['held_out']} images held out" in section(root, "story").text
    assert "decide" not in section(root, "story").text
    assert len(section(root, "configurations").table()) == 3 and len(section(root, "cells").table()) == 6
    assert sum("is not finite" in row[-1] for row in section(root, "cells").table()) == 2
    assert len(section(root, "training").all("svg")) == 3
    ((first, *rest), (second, *others)) = section(root, "effects").table()
    assert (first, second) == ("0.01", "0.02") and rest[-1] == others[-1] == "2"
    config = load(study / "best.yaml")
    assert config.optimizer.learning_rate == float(best["values"]["optimizer.learning_rate"])
    assert config.min_steps == 2 and config.run.dir == "runs/study-best" and config.resume == "never"


def test_it_is_drawn_again_and_nothing_is_trained_again(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, page_before = contents(study / "runs"), (study / "report" / "index.html").read_bytes()
    assert command.run(study.parent / "study.yaml", ["min_steps=2"], study, nothing_starts) == 0
    (study / "report" / "index.html").unlink()
    command.report(study)
    assert (study / "report" / "index.html").read_bytes() == page_before
    assert contents(study / "runs") == before
    assert "6 trainings, 6 of them done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"data.validation": ["0.1", "0.2"]}, "data.validation decides which images are held out"),
        (
            {"x": [{"data.split_seed": "1", "data.train_share": "1"}]},
            "data.split_seed and data.train_share decide which",
        ),
    ],
)
def test_who_was_judged_by_other_images_is_named(study: Path, grid: dict[str, list[Any]], told: str) -> None:
    found = msgspec.convert(summary(study), Summary)
    assert told in reach(Definition(base="base.yaml", grid=grid), found, [])["words"]


def test_another_study_is_refused_its_folder(study: Path, recipe: Path, tmp_path: Path) -> None:
    for text, words, told in (
        (GRID.replace("0.02", "0.03"), ["min_steps=2"], "another grid"),
        (GRID, ["min_steps=3"], "another overrides"),
        (GRID + "objective: loss\n", ["min_steps=2"], "another objective"),
    ):
        with pytest.raises(UserError, match=f"study holds a study with {told}; of one that was begun only seeds, "):
            command.run(study_file(tmp_path, recipe, text), words, study, nothing_starts)
    with pytest.raises(UserError, match="holds something else than a study"):
        command.run(study_file(tmp_path, recipe, GRID), [], tmp_path, nothing_starts)
    with (
        command.claimed(study, "definition.yaml"),
        pytest.raises(UserError, match="study is in use by another study; wait for it, or"),
    ):
        command.run(study.parent / "study.yaml", ["min_steps=2"], study, nothing_starts)


def test_hopeless_cells_are_given_up(runs: Path, recipe: Path, tmp_path: Path) -> None:
    """By a threshold that none reaches, from the third epoch on; the first configuration ends before that."""
    text = "grid: {epochs: [1, 1000]}\npruner: {name: threshold, lower: 1.1, n_warmup_steps: 3}\n"
    assert command.run(study_file(tmp_path, recipe, text), [], runs / "pruned", Warm) == 0
    first, second = summary(runs / "pruned")["cells"]
    assert (first["ending"], second["ending"], second["objective"]) == ("done", "given up", None)
    assert json.loads((runs / "pruned/runs" / second["name"] / "outcome.json").read_text())["state"] == "stopped"
    assert "1 given up" in page(runs / "pruned").text
    assert "Cells that were given up have no figure" in page(runs / "pruned").text
    with pytest.raises(UserError, match=r"there is no 'mediam'; the names are median, .*"):
        text = text.replace("threshold", "mediam")
        command.run(study_file(tmp_path, recipe, text), [], runs / "pruned", nothing_starts)


def test_a_study_without_a_figure_says_why(runs: Path, recipe: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path, recipe, "grid: {batch: [1000]}\n")
    with pytest.raises(
        UserError, match=r"no cell of .*none came to its end; 001-batch-1000-seed-0: .* one batch of 1000"
    ):
        command.run(path, [], runs / "none", Warm)


@pytest.mark.slow
def test_killed_and_stopped_it_goes_on_without_a_finished_cell(runs: Path, recipe: Path, tmp_path: Path) -> None:
    text = "grid: {min_steps: [2, 60]}\n"
    path, out = study_file(tmp_path, recipe, text), runs / "killed"
    words = ["study", str(path), "checkpoint.every_steps=10", "--out", str(out)]
    first, second = out / "runs" / "001-min_steps-2-seed-0", out / "runs" / "002-min_steps-60-seed-0"

    def begun(steps: int) -> Warm:
        process = Warm(words, tmp_path / "output", {})
        wait_until(lambda: any(row["step"] >= steps for row in read_metrics(second / "metrics.jsonl")), process)  # type: ignore[arg-type]
        return process

    process = begun(steps=12)
    trainings = descendants(process.process.pid)
    process.process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_gone(trainings)
    finished = contents(first)
    process = begun(steps=25)
    process.terminate()
    assert process.wait() == EXIT_STOPPED
    last = (tmp_path / "output").read_text().splitlines()[-1]
    assert last.startswith("vgg-ddp: stopped on request after 1 of 2 cells; to go on: vgg-ddp study ")
    assert Warm(words, tmp_path / "output", {}).wait() == 0
    assert contents(first) == finished
    rows = [row["step"] for row in read_metrics(second / "metrics.jsonl") if row["scope"] == "steps"]
    assert rows == list(range(1, 61))
    assert [cell["ending"] for cell in summary(out)["cells"]] == ["done", "done"]


def test_a_learning_rate_is_looked_for_until_the_loss_rises(
    runs: Path, recipe: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "rate"
    words = [f"data.source={digits}", "batch=32", "schedule.first=1e-4", "optimizer.learning_rate=10", "min_steps=51"]
    assert learning_rate.run(recipe, words, out, Warm) == 0
    told = json.loads((out / "summary.json").read_text())
    rows = [row for row in read_metrics(out / "run" / "metrics.jsonl") if row["scope"] == "steps"]
    assert [row["lr"] for row in rows] == pytest.approx(np.logspace(-3, 1, 51)[: len(rows)])
    assert 1e-3 < told["begins"] < told["lowest"] < 1 and told["suggested"] == told["lowest"] / 10
    assert load(recipe, told["words"]).optimizer.learning_rate == pytest.approx(told["suggested"], rel=0.1)
    assert f"a tenth of that: {' '.join(told['words'])}" in capsys.readouterr().out
    story = section(page(out), "story").text
    assert f"{told['suggested']:.2g}" in story and "a batch of 32" in story
    labels = [text.text for text in section(page(out), "training").all("text", **{"class": "tick"})]
    assert {"0.001", "0.01", "0.1"} <= set(labels)
    with pytest.raises(UserError, match="holds a test of the learning rate already"):
        learning_rate.run(recipe, words, out, nothing_starts)
    with pytest.raises(UserError, match="muon_rate is its convolutions'"):
        learning_rate.run(recipe, ["optimizer.name=muon"], runs / "muon", nothing_starts)
    with pytest.raises(UserError, match="does not fall and rise again"):
        learning_rate.run(recipe, ["optimizer.learning_rate=1e-6", "min_steps=21"], runs / "flat", Warm)


def test_a_test_of_the_rate_that_is_started_again_tells_why_it_failed_this_time(
    recipe: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rate"
    out.mkdir()
    (out / "learning-rate.txt").write_text("vgg-ddp: stopped by SIGTERM before the first step; nothing to save\n")

    def start(written: list[str], output: Path, environment: dict[str, str]) -> Any:
        with output.open("a") as file:
            file.write("Traceback:\nValueError: a bug\n")
        return SimpleNamespace(poll=lambda: 1)

    with pytest.raises(UserError, match="it ended with exit code 1: ValueError: a bug"):
        learning_rate.run(recipe, [f"data.source={digits}"], out, start)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("vgg-ddp: a key is wrong\n", "a key is wrong"),
        (
            "Traceback:\n  a line\nValueError: a bug\nvgg-ddp: rank 0 failed with exit code 1 in step 3, again\n",
            "it ended with exit code 1: ValueError: a bug",
        ),
        ("noise\nvgg-ddp: rank 0 was killed by SIGKILL in step 3\n", "rank 0 was killed by SIGKILL in step 3"),
        ("", "it ended with exit code 1"),
    ],
)
def test_why_a_training_failed_is_the_line_that_says_most(output: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "output").write_text(output)
    assert running.failure(tmp_path / "output", 1) == reason


def test_trainings_at_once_share_the_gpus_or_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With simulated GPUs: only the choice of those that each training sees is tested here."""
    config = Config(device="cpu", nproc=1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert running.places(config, 1) == [{}]
    cores = running.cores.usable()
    assert running.places(config, 2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    monkeypatch.setattr(running.cores, "usable", lambda: 24)
    assert running.places(Config(device="cpu", nproc=3), 2) == [{"OMP_NUM_THREADS": "4"}] * 2
    for gpus, shown, count, expected in (
        (4, None, 2, ["0,1", "2,3"]),
        (3, "5,6,7", 3, ["5", "6", "7"]),
        (2, None, 3, ["0", "1", "0"]),
    ):
        monkeypatch.setattr(Devices, "gpus", lambda self, gpus=gpus: gpus)
        if shown:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert [place["CUDA_VISIBLE_DEVICES"] for place in running.places(config, count)] == expected
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_optuna_one_line_says_what_to_install(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = study_file(tmp_path, recipe, GRID)
    with pytest.raises(UserError, match=r"vgg-ddp study needs optuna; pip install 'vgg_ddp\[study\]'"):
        command.run(path, [], tmp_path / "out", nothing_starts)
    assert not (tmp_path / "out").exists()
