"""The table of errors: which evaluations are in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vgg_ddp.errors import UserError
from vgg_ddp.report import error_table


def write_summary(folder: Path, dataset: str, accuracy: float, **more: Any) -> None:
    (folder / "evaluation").mkdir(parents=True)
    summary = {"dataset": dataset, "network": "vgg11", "accuracy": accuracy, "top5_accuracy": None, **more}
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))


def test_evaluations_on_other_data_are_counted_and_left_out(tmp_path: Path) -> None:
    """Their errors cannot be compared with those of the run's own images."""
    run = tmp_path / "run"
    write_summary(run, "cifar10", 0.9)
    write_summary(run / "evaluations" / "dense", "cifar10", 0.92, protocol={"name": "dense", "scales": [40]})
    write_summary(run / "evaluations" / "photos", "photos", 0.3)
    rows, left_out = error_table.rows([run])
    assert [(row[4], row[5]) for row in rows] == [("single", "10.00"), ("dense", "8.00")]
    assert left_out == {error_table.OTHER_DATA: 1}


def test_evaluations_of_another_checkpoint_are_counted_and_left_out(tmp_path: Path) -> None:
    """A run that was trained further keeps the evaluations of its earlier weights."""
    run = tmp_path / "run"
    write_summary(run, "cifar10", 0.9, checkpoint_sha256="later")
    write_summary(
        run / "evaluations" / "dense", "cifar10", 0.8, checkpoint_sha256="earlier", protocol={"name": "dense"}
    )
    rows, left_out = error_table.rows([run])
    assert [row[5] for row in rows] == ["10.00"]
    assert left_out == {error_table.OTHER_CHECKPOINT: 1}


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run has no evaluation; run: vgg-ddp evaluate"):
        error_table.rows([tmp_path / "run"])
