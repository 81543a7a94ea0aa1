"""A run that is stopped or killed, and continued, ends with the bits of one that was left alone."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.support.processes import assert_gone, descendants
from tests.support.rank_processes import Launch, Ranks, Train, step, vgg_ddp, wait_until
from tests.support.run_folders import assert_same_bits, assert_undisturbed, metrics, state, stop
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.config import Config, load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import EXIT_STOPPED, UserError
from vgg_ddp.evaluation.stored import read_evaluation, write_evaluation
from vgg_ddp.run import checkpoint, outcome
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.training import continuing

EVALUATION = "in the evaluation; nothing is lost, vgg-ddp evaluate RUN makes it"
# Two epochs of 8 steps, of averaged weights; 30 images are held out.
TWO_EPOCHS = ("data.validation=0.2", "min_steps=16", "ema=0.9", "evaluate.checkpoint=best")


@pytest.fixture(scope="module")
def whole(train: Train) -> Path:
    """Two epochs that nobody disturbs."""
    return train("whole", *TWO_EPOCHS)


def test_the_log_has_each_step_epoch_and_validation_once(whole: Path) -> None:
    rows = [(row["scope"], row["split"], row["step"]) for row in metrics(whole)]
    ends = [("epoch", split, step) for step in (8, 16) for split in ("train", "validation")]
    assert sorted(rows) == sorted([*(("steps", "train", step) for step in range(1, 17)), *ends])


@pytest.fixture(scope="module")
def stopped(launch: Launch, runs: Path) -> Path:
    """The same, stopped in its first epoch."""
    run = runs / "stopped"
    stop(launch("stopped", *TWO_EPOCHS, pause=step(6)))
    assert state(run)["step"] == 6
    return run


def test_a_run_is_evaluated_once_each_evaluation_that_it_asks_for_has_its_report(whole: Path, runs: Path) -> None:
    run = RunDirectory(shutil.copytree(whole, runs / "evaluated"))
    config = load(run.config)
    dense = msgspec.structs.replace(config, evaluate=msgspec.structs.replace(config.evaluate, protocol="dense"))
    assert continuing._is_evaluated(run, config)
    assert not continuing._is_evaluated(run, dense)
    shutil.copytree(run.evaluation, run.evaluations / "dense" / "evaluation")
    assert not continuing._is_evaluated(run, dense)
    shutil.copytree(run.report.parent, run.evaluations / "dense" / "report")
    assert continuing._is_evaluated(run, dense)


@pytest.mark.parametrize("cut_off_at", ["predictions.npz", "why.npz", "summary.json"])
def test_a_new_evaluation_that_is_cut_off_leaves_nothing_of_the_one_before(
    cut_off_at: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its report would stay beside other figures, and its summary beside other predictions."""
    run = RunDirectory(shutil.copytree(whole, tmp_path / "again"))
    stored = read_evaluation(run.path)
    write = RunDirectory.write_bytes

    def cut_off(directory: RunDirectory, path: Path, data: bytes) -> None:
        if path.name == cut_off_at:
            raise KeyboardInterrupt
        write(directory, path, data)

    monkeypatch.setattr(RunDirectory, "write_bytes", cut_off)
    predictions = Predictions(stored.label, np.log(stored.probabilities), stored.sample_index)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(run, stored.summary, predictions, stored.causes)
    assert not run.report.exists()
    with pytest.raises(UserError, match="has no evaluation yet"):
        read_evaluation(run.path)


def test_a_best_checkpoint_that_a_kill_left_unmarked_is_marked(whole: Path, train: Train, runs: Path) -> None:
    """It is the newest, and may be evaluated; its epoch is not validated again."""
    run = train("unmarked", *TWO_EPOCHS, "min_steps=8")
    marked = (run / "checkpoints/best").read_text()
    (run / "checkpoints/best").unlink()
    shutil.rmtree(run / "evaluation")
    train("unmarked", *TWO_EPOCHS, "min_steps=8", "resume=auto")
    assert (run / "checkpoints/best").read_text() == marked
    assert (run / "evaluation/summary.json").is_file()


def test_where_a_checkpoint_divides_the_steps_changes_no_mean_of_their_epoch(train: Train) -> None:
    """As a stop does, which saves one too."""
    words = (*TWO_EPOCHS, "log.every_steps=4")
    found = [train(f"means {more}", *words, *more) for more in ((), ("checkpoint.every_steps=3",))]
    epochs = [
        [(row["split"], row["loss"], row["accuracy"]) for row in metrics(run) if row["scope"] == "epoch"]
        for run in found
    ]
    assert epochs[0] == epochs[1] and len(epochs[0]) == 4


@pytest.mark.seconds
def test_three_ranks_that_are_stopped_and_continued_end_with_the_same_bits(
    launch: Launch, train: Train, runs: Path
) -> None:
    """The sum of three gradients depends on where they lie in DDP's buckets, of which there are several here."""
    words = ("batch=24", "min_steps=6", "communication.bucket_mb=1")
    alone = train("three left alone", *words, size=3)
    stop(launch("three stopped", *words, size=3, pause=step(3)))
    assert_same_bits(train("three stopped", *words, "resume=auto", size=3), alone, "model")


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_continued_with_either_loader(loader: str, stopped: Path, whole: Path, train: Train, runs: Path) -> None:
    shutil.copytree(stopped, runs / loader)
    resumed = train(loader, *TWO_EPOCHS, "resume=auto", f"loader={loader}")
    assert json.loads((resumed / "summary.json").read_text())["loader"] == loader
    assert_undisturbed(resumed, whole)


@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_between_saving_an_epoch_s_last_step_and_its_validation(
    epoch: int, whole: Path, launch: Launch, train: Train, runs: Path
) -> None:
    """What was already logged at that epoch's end is not logged twice, and what was not yet done is done."""
    run = runs / f"killed in {epoch}"
    end = {"scope": "epoch", "split": "train", "step": 8 * epoch}
    ranks = launch(run.name, *TWO_EPOCHS, "checkpoint.every_steps=8", pause=end)
    wait_until(ranks.paused, ranks)
    ranks.send(signal.SIGKILL)
    assert ranks.wait() == [-signal.SIGKILL]
    assert (state(run)["step"], state(run)["step_in_epoch"]) == (8 * epoch, 8)
    assert_undisturbed(train(run.name, *TWO_EPOCHS, "resume=auto"), whole)


def test_what_is_trained_to_its_end_is_not_rewritten(whole: Path, launch: Launch, runs: Path) -> None:
    run = runs / "finished"
    shutil.copytree(whole, run)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files(run)}
    ranks = launch(run.name, *TWO_EPOCHS, "min_steps=9", "optimizer.learning_rate=0.5", "resume=auto")
    assert ranks.wait() == [0], ranks.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files(run)} == before
    (line,) = ranks.stdout.splitlines()
    assert "is trained to its end, 16 steps: nothing is trained or rewritten" in line
    assert "without effect: min_steps=9 (before: 16), optimizer.learning_rate=0.5 (before: 0.01)" in line


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")


def test_an_evaluation_that_was_cut_off_is_made_up_for_with_the_run_s_own_settings(
    whole: Path, train: Train, runs: Path
) -> None:
    run = runs / "not evaluated"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "evaluation")
    (run / "summary.json").unlink()
    config = (run / "config.yaml").read_bytes()
    train(run.name, *TWO_EPOCHS, "data.resize=20", "resume=auto")
    assert (run / "config.yaml").read_bytes() == config
    assert json.loads((run / "summary.json").read_text())["steps"] == 16
    assert_undisturbed(run, whole)


def test_a_newest_checkpoint_that_cannot_be_is_passed_over(
    stopped: Path, whole: Path, launch: Launch, runs: Path
) -> None:
    """One with every hash right, whose weights are not finite."""
    run = runs / "forged"
    shutil.copytree(stopped, run)
    files = checkpoint.read(run / "checkpoints" / "step-00000006")
    weights = checkpoint.tensors(files, "model.safetensors")
    weights["features.0.weight"][0] = torch.nan
    forged = checkpoint.encode(
        weights, checkpoint.tensors(files, "optimizer.safetensors"), checkpoint.state(files), weights
    )
    checkpoint.write(run / "checkpoints", forged, 7)
    ranks = launch(run.name, *TWO_EPOCHS, "resume=auto")
    assert ranks.wait() == [0], ranks.stderr
    assert "step-00000007" in ranks.stdout and "features.0.weight is not finite; take another one" in ranks.stdout
    assert_undisturbed(run, whole)


def test_the_order_of_an_epoch_is_kept_to_its_end(stopped: Path, launch: Launch, runs: Path) -> None:
    run = runs / "balanced"
    shutil.copytree(stopped, run)
    ranks = launch(run.name, *TWO_EPOCHS, "data.balance_classes=true", "resume=auto", pause=None)
    assert ranks.wait() == [2], ranks.stderr
    assert "was made with data.balance_classes=False, not True" in ranks.stderr


def test_what_a_continued_run_changes_is_said_and_recorded(stopped: Path, launch: Launch, runs: Path) -> None:
    run = runs / "changed"
    shutil.copytree(stopped, run)
    for rate, steps in (("0.02", "7"), ("0.03", "9")):
        words = (f"optimizer.learning_rate={rate}", f"min_steps={steps}", "evaluate.checkpoint=last", "resume=auto")
        ranks = launch(run.name, *TWO_EPOCHS, *words, pause=None)
        assert ranks.wait() == [0], ranks.stderr
    changes = json.loads((run / "environment.json").read_text())["changes"]
    assert changes == [
        "from step 6: min_steps=7 (before: 16)",
        "from step 6: optimizer.learning_rate=0.02 (before: 0.01)",
        'from step 6: evaluate.checkpoint="last" (before: "best")',
        "from step 7: min_steps=9 (before: 7)",
        "from step 7: optimizer.learning_rate=0.03 (before: 0.02)",
    ]
    assert changes[-1] in ranks.stdout
    assert changes[-1] in (run / "report" / "index.html").read_text()


def test_another_number_of_threads_is_said(stopped: Path, train: Train, runs: Path) -> None:
    run = runs / "other threads"
    shutil.copytree(stopped, run)
    environment = json.loads((run / "environment.json").read_text())
    environment["host"]["threads"] = 7
    (run / "environment.json").write_text(json.dumps(environment))
    train(run.name, *TWO_EPOCHS, "resume=auto")
    changes = json.loads((run / "environment.json").read_text())["changes"]
    assert any(re.search(r"from step 6: threads of rank 0: \d+ \(before: 7\)", change) for change in changes), changes


def test_an_end_before_the_step_that_is_continued_ends_that_epoch(stopped: Path, train: Train, runs: Path) -> None:
    """It is validated, saved and evaluated, without another step."""
    run = runs / "ended sooner"
    shutil.copytree(stopped, run)
    train(run.name, *TWO_EPOCHS, "min_steps=4", "profile=1", "resume=auto")
    assert [state(run)[key] for key in ("step", "epoch", "step_in_epoch")] == [6, 1, 0]
    rows = [(row["split"], row["step"]) for row in metrics(run) if row["scope"] == "epoch"]
    assert rows == [("train", 6), ("validation", 6)]
    assert json.loads((run / "summary.json").read_text())["steps"] == 6
    assert (run / "evaluation" / "summary.json").is_file() and (run / "report" / "index.html").is_file()


def test_dropout_goes_on_as_if_nothing_had_been(launch: Launch, train: Train, runs: Path) -> None:
    words = ("model.head=paper", "data.image_size=32", "batch=4", "min_steps=6")
    expected = train("dropout", *words)
    assert "dropout: 0.5" in (expected / "config.yaml").read_text()
    stop(launch("dropout stopped", *words, pause=step(2)))
    assert_undisturbed(train("dropout stopped", *words, "resume=auto"), expected)
    for name in ("dropout", "dropout stopped"):  # 450 MB
        shutil.rmtree(runs / name)


def test_two_ranks_of_which_one_is_told_to_stop(launch: Launch, train: Train, runs: Path) -> None:
    words = ("model.batch_norm=false", "min_steps=8", "checkpoint.every_steps=3")
    expected = train("two", *words, size=2)
    run = runs / "two stopped"
    stop(launch(run.name, *words, size=2, pause=step(4)), rank=1)
    shutil.copytree(run, runs / "two then one")
    assert_undisturbed(train(run.name, *words, "resume=auto", size=2), expected)
    # A checkpoint of two ranks loads into one as well, and without batch norm the steps are the same but for rounding.
    alone = train("two then one", *words, "resume=auto")
    for row, other in zip(metrics(alone), metrics(expected), strict=True):
        assert row["step"] == other["step"]
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_signal_to_all_processes_at_once(launch: Launch, runs: Path) -> None:
    """As by Slurm or systemd: also to the loader's workers, with a second signal before the ranks have ended."""
    ranks = launch("at once", "min_steps=20", "data.workers=1", size=2, pause=step(2))
    wait_until(ranks.paused, ranks)
    started = [process.pid for process in ranks.processes]
    workers = [worker for rank in started for worker in descendants(rank)]
    assert len(workers) >= 2
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for process in [*workers, *started]:
            os.kill(process, number)
    ranks.send(signal.SIGCONT)
    assert ranks.wait() == [EXIT_STOPPED] * 2, ranks.stderr
    assert ranks.stderr == "" and ranks.stdout.count("stopped on request") == 1
    assert_gone(workers)


@pytest.mark.parametrize(
    ("place", "number", "told"),
    [
        ("vgg_ddp.train.build_job", signal.SIGHUP, "before the first step; nothing to save"),
        ("vgg_ddp.train.validate", signal.SIGUSR1, EVALUATION),
        ("vgg_ddp.evaluation.test_set.evaluate", signal.SIGTERM, EVALUATION),
        ("vgg_ddp.report.write_report", signal.SIGINT, EVALUATION),
    ],
)
def test_a_signal_where_there_is_nothing_to_save(
    place: str, number: signal.Signals, told: str, recipe: Path, runs: Path
) -> None:
    """Before the first step, in the validation after the last, and later; one rank, in the command's own process."""
    run = runs / place
    words = ["train", str(recipe), f"run.dir={run}", "min_steps=2", "data.validation=0.2", "restarts=0"]
    command = Ranks(_signalled_at, (place, number, words), 1, runs / f"{place} output")
    assert command.wait() == [128 + number], command.stderr
    assert command.stderr.splitlines() == [f"vgg-ddp: stopped by {number.name} {told}"]
    if told == EVALUATION:
        assert state(run)["step"] == 2
        done = vgg_ddp("evaluate", str(run), folder=runs)
        assert done.returncode == 0 and (run / "report" / "index.html").is_file(), done.stderr
        account = outcome.account(RunDirectory(run), read_metrics(run / "metrics.jsonl"))
        assert account.state == (
            "Failed" if place == "vgg_ddp.train.validate" else ""
        )  # the last validation is missing


def _signalled_at(place: str, number: int, words: list[str]) -> int:
    """Run the command, which gets a signal when it reaches a function."""
    from vgg_ddp import cli

    module, _, name = place.rpartition(".")
    function = getattr(importlib.import_module(module), name)

    def signalled(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments, **named)

    setattr(importlib.import_module(module), name, signalled)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here, as in background jobs
    return cli.main(words)


def test_each_signal_of_a_scheduler_or_a_person_stops_with_a_checkpoint(launch: Launch, runs: Path) -> None:
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        run = runs / f"signal {number}"
        ranks = launch(run.name, "min_steps=20", pause=step(2))
        stop(ranks, number=number)
        assert ranks.stdout.count("stopped on request") == 1
        assert state(run)["step"] == max(row["step"] for row in metrics(run)) < 20


def identity(few_digits: Path, share: float, split_seed: int) -> dict[str, Any]:
    config = msgspec.convert({"data": {"train_share": share, "split_seed": split_seed}}, Config)
    return continuing.identity(config, Dataset(few_digits))


@pytest.mark.parametrize(("share", "same"), [(0.5, False), (1.0, True)])
def test_what_draws_the_share_that_is_trained_on_is_part_of_a_run_s_identity(
    few_digits: Path, share: float, same: bool
) -> None:
    """Nothing is drawn from a whole set. A checkpoint of an earlier version does not record it, and is accepted."""
    made, wanted = (identity(few_digits, share, seed) for seed in (3, 4))
    assert (made == wanted) == same
    with (
        nullcontext() if same else pytest.raises(UserError, match=r"was made with data\.split_seed=3, not 4; set it so")
    ):
        checkpoint.check_identity(checkpoint.State(identity=made), wanted, Path("run"))
    del made["data.split_seed"]
    checkpoint.check_identity(checkpoint.State(identity=made), wanted, Path("run"))
