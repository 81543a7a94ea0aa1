"""What a tracker is told of the end of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vgg_ddp.config.tracking import TrackingConfig
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.trackers import Assignment, follower

KILLED = ("Interrupted", "It was killed, or lost with its machine, after no step. To start again:")


@pytest.mark.parametrize(
    ("outcome", "trained", "told"),
    [
        ("failed", False, [KILLED, "failed"]),
        ("failed", True, ["finished"]),  # the training was done; another evaluation failed
        ("stopped", False, ["stopped"]),
    ],
)
def test_a_training_that_is_done_does_not_fail_any_more(
    outcome: str,
    trained: bool,
    told: list[Any],
    tmp_path: Path,
    recipe: Path,
    few_digits: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDirectory(tmp_path)
    for folder in (run.evaluation, tmp_path / "tracking"):
        folder.mkdir()
    shutil.copy(recipe, run.config)
    if trained:
        run.write_json(run.outcome, {"state": "finished"})
        run.write_json(run.summary, {"steps": 3})
        (run.evaluation / "summary.json").write_text(json.dumps({}))
    said: list[Any] = []
    tracker = SimpleNamespace(
        failed=lambda state, words: said.append((state, words)), finish=lambda ending, totals: said.append(ending)
    )
    module = SimpleNamespace(start=lambda *arguments: tracker)
    monkeypatch.setattr(follower.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(follower, "_outcome", lambda training: outcome)
    assignment = Assignment("wandb", "offline", TrackingConfig(), str(tmp_path), str(few_digits), "id", 0)
    follower.follow(assignment, pytest.fail)
    assert said == told
