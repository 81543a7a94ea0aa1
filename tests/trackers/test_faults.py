"""Whatever W&B does, the training ends with the same weights and exit code, and says once what happened."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rank_processes import Ranks, Train
from tests.trackers.conftest import (
    Start,
    followers,
    history,
    latest,
    status,
    wait_until_gone,
    wandb_records,
    wandb_segments,
)

WORDS = ("min_steps=3", "seed=5")

# A module that accepts every call like W&B's, except for one that fails.
FAKE = """
import os, time

class Anything:
    step, offline, url = 0, True, "here"
    def __init__(self, name=""): self._name = name
    def __getattr__(self, name): return Anything(name)
    def __call__(self, *values, **named):
        if self._name == {where!r}: {what}
        return Anything()

Settings, Image, Table, Html, plot, teardown, Run = (Anything() for _ in range(7))
init = Anything("init")
"""
RAISE, HANG, DIE = "raise SystemExit('W&B is broken')", "time.sleep(1000)", "os.kill(os.getpid(), 11)"
FAULTS = {
    "raises at import": "raise ImportError('W&B is broken')",
    "hangs at import": "import time; time.sleep(1000)",
    **{
        f"{how} at {where}": FAKE.format(where=where, what=what)
        for how, what in (("raises", RAISE), ("hangs", HANG), ("dies", DIE))
        for where in ("init", "log", "finish")
    },
}


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> Iterator[Path]:
    run = train("undisturbed", *WORDS, "tracking.wandb=disabled")
    yield run
    shutil.rmtree(run)


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / latest(run) / "model.safetensors").read_bytes()


def trained(ranks: Ranks, run: Path, undisturbed: Path) -> None:
    """Assert that it ended well, with the weights of the undisturbed run and a report, and that no process is left."""
    assert ranks.wait() == [0], ranks.stderr
    assert weights(run) == weights(undisturbed)
    assert (run / "report/index.html").is_file()
    wait_until_gone(run)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_wandb_changes_nothing(
    fault: str, undisturbed: Path, runs: Path, recipe: Path, start_with: Start, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/__init__.py").write_text(FAULTS[fault])
    run = runs / fault
    root = Path(__file__).resolve().parents[2]
    patience = "tracking.finish_seconds=0.5" if "hangs" in fault else "tracking.finish_seconds=300"
    words = [str(recipe), f"run.dir={run}", *WORDS, "tracking.wandb=offline", patience]
    ranks = start_with("vgg_ddp.train", {"PYTHONPATH": f"{tmp_path}:{root}"}, words)
    trained(ranks, run, undisturbed)
    (problem,) = [text for text in status(run) if text.startswith("wandb: ")]
    expected = {"raises": "W&B is broken", "hangs": "did not finish in time", "dies": "its process ended with code -11"}
    assert expected[fault.split()[0]] in problem
    assert ranks.stdout.count(problem) == 1
    assert "Traceback" not in ranks.stdout + ranks.stderr
    shutil.rmtree(run)


def test_a_tracker_that_cannot_be_started_changes_nothing(
    undisturbed: Path, runs: Path, recipe: Path, start_with: Start
) -> None:
    """A file stands where the trackers' folder should be."""
    run = runs / "no place"
    run.mkdir()
    (run / "tracking").write_text("")
    ranks = start_with("vgg_ddp.train", {}, [str(recipe), f"run.dir={run}", *WORDS, "tracking.wandb=offline"])
    trained(ranks, run, undisturbed)
    assert ranks.stdout.count("wandb: cannot be started") == 1
    shutil.rmtree(run)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    held = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return  # the server is closed

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_without_an_answer_from_the_network_training_does_not_wait(
    undisturbed: Path, black_hole: str, runs: Path, recipe: Path, start_with: Start
) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    run = runs / "no answer"
    environment = {"WANDB_BASE_URL": black_hole, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3600"}
    words = [str(recipe), f"run.dir={run}", *WORDS, "tracking.wandb=online", "tracking.finish_seconds=1"]
    ranks = start_with("vgg_ddp.train", environment, words)
    trained(ranks, run, undisturbed)
    assert "did not finish in time" in status(run)[-1]
    shutil.rmtree(run)


def test_what_cannot_be_sent_is_written_offline(
    undisturbed: Path, black_hole: str, runs: Path, recipe: Path, start_with: Start
) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    run = runs / "later"
    environment = {"WANDB_BASE_URL": black_hole, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
    words = [str(recipe), f"run.dir={run}", *WORDS, "tracking.wandb=online"]
    ranks = start_with("vgg_ddp.train", environment, words)
    trained(ranks, run, undisturbed)
    assert "cannot be reached" in status(run)[-1] and "wandb sync" in status(run)[-1]
    (segment,) = wandb_segments(run)
    assert sorted(history(wandb_records(segment))) == [1, 2, 3]
    shutil.rmtree(run)


HOSTILE = ["<script>alert(1)</script>", '"', "'", "\u202eright", "x" * 300, "$a_b$", "a|b", "日本語", "&amp;", "..\\/"]


def test_hostile_names_are_no_fault(
    few_digits: Path, runs: Path, recipe: Path, start_with: Start, tmp_path: Path
) -> None:
    """Class and data set names with characters special to HTML, Markdown, TeX, paths or shells."""
    shutil.copytree(few_digits, tmp_path / "hostile")
    record = json.loads((few_digits / "dataset.json").read_text())
    record |= {"name": "<b>日本 'data'", "classes": HOSTILE, "groups": {}}
    (tmp_path / "hostile/dataset.json").write_text(json.dumps({**record, "sha256": ""}))
    run = runs / "hostile"
    words = [str(recipe), f"run.dir={run}", "min_steps=2", f"data.source={tmp_path / 'hostile'}"]
    tracking = ["tracking.wandb=offline", "tracking.tensorboard=true", "tracking.artifacts=true"]
    assert start_with("vgg_ddp.train", {}, [*words, *tracking]).wait() == [0]
    assert [text for text in status(run) if text.startswith(("wandb", "tensorboard"))] == []
    (segment,) = wandb_segments(run)
    table = json.loads((segment / "files" / history(wandb_records(segment))[2]["test/per_class.path"]).read_text())
    assert [row[0] for row in table["data"]] == HOSTILE
    shutil.rmtree(run)


def _train_without(arguments: list[str]) -> int:
    """Train, and check whether W&B or TensorBoard was imported."""
    from vgg_ddp import train

    os.environ.pop("WANDB_MODE", None)  # so that "auto" looks for a login, of which the tests have none
    code = train.main(arguments)
    return code or 10 * any(name.split(".")[0] in ("wandb", "tensorboard") for name in sys.modules)


@pytest.mark.parametrize("mode", ["disabled", "auto", "offline"])
def test_the_training_itself_imports_nothing_of_wandb(mode: str, runs: Path, recipe: Path, tmp_path: Path) -> None:
    run = runs / f"imports {mode}"
    words = [str(recipe), f"run.dir={run}", "min_steps=1", f"tracking.wandb={mode}"]
    ranks = Ranks(_train_without, (words,), 1, tmp_path)
    assert ranks.wait() == [0], ranks.stderr
    assert (run / "tracking").exists() == (run / "wandb").exists() == (mode == "offline")
    assert followers(run) == []
    shutil.rmtree(run)
