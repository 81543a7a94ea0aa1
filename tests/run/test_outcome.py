"""The outcome of a run, inferred from the files in its folder."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from vgg_ddp.run import outcome
from vgg_ddp.run.directory import RunDirectory

FAILED = json.dumps({"state": "failed", "why": "no memory"})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was trained to its end, and then failed."""
    found = RunDirectory(tmp_path)
    found.config.write_text("network: vgg11\n")
    found.outcome.write_text(FAILED)
    found.summary.write_text(json.dumps({"steps": 3}))
    (found.checkpoints / "step-00000003").mkdir(parents=True)
    (found.checkpoints / "latest").write_text("step-00000003")
    return found


def evaluated(run: RunDirectory, manifest: bytes) -> None:
    run.evaluation.mkdir()
    (run.evaluation / "summary.json").write_text(json.dumps({"checkpoint_sha256": sha256(manifest).hexdigest()}))


def test_a_failed_evaluation_that_was_made_up_for_is_none(run: RunDirectory) -> None:
    assert outcome.account(run, []).state == "Not evaluated"
    evaluated(run, b"manifest")
    assert outcome.account(run, []).state == "Not evaluated"  # the evaluation is of a checkpoint that is gone
    (run.checkpoints / "step-00000003" / "manifest.json").write_bytes(b"manifest")
    assert outcome.account(run, []) == outcome.Account()


def test_a_continuation_that_failed_is_told(run: RunDirectory) -> None:
    """A continuation removes the summary of the earlier end."""
    (run.checkpoints / "step-00000003" / "manifest.json").write_bytes(b"manifest")
    evaluated(run, b"manifest")
    run.summary.unlink()
    assert outcome.account(run, []).state == "Failed"
