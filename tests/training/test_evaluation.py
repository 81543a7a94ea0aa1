"""Every test image counts exactly once, and the world size changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from tests.training.rank_processes import start


def evaluated(run: Path, size: int, batch: int, output: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """summary.json and predictions.npz of an evaluation on `size` ranks."""
    ranks = start("vgg_ddp.evaluate", [str(run), f"evaluate.batch={batch}"], size, output)
    assert ranks.wait() == [0] * size, ranks.stderr
    with np.load(run / "evaluation" / "predictions.npz") as arrays:
        return json.loads((run / "evaluation" / "summary.json").read_text()), dict(arrays)


@pytest.mark.parametrize("batch", [7, 23, 64])  # 64: all images on one rank, none on the others
def test_one_two_and_three_ranks_write_the_same(batch: int, whole_run: Path, tmp_path: Path) -> None:
    summaries, predictions = zip(*(evaluated(whole_run, size, batch, tmp_path / str(size)) for size in (1, 2, 3)))
    for size, summary in zip((1, 2, 3), summaries):
        assert summary.pop("world_size") == size
        assert summary["images"] == 40
        assert summary == summaries[0]
    for arrays in predictions:
        assert np.array_equal(arrays["sample_index"], np.arange(40))
        for name, array in arrays.items():
            assert np.array_equal(array, predictions[0][name]), name


def test_the_summary_is_what_scikit_learn_says_of_the_predictions(whole_run: Path, tmp_path: Path) -> None:
    summary, arrays = evaluated(whole_run, 2, 11, tmp_path / "ranks")
    label, prediction = arrays["label"], arrays["prediction"]
    assert summary["accuracy"] == accuracy_score(label, prediction)
    assert summary["confusion"] == confusion_matrix(label, prediction, labels=range(10)).tolist()
    probabilities = arrays["probabilities"].astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert summary["loss"] == pytest.approx(log_loss(label, probabilities, labels=range(10)), rel=1e-4)
    recall = precision_recall_fscore_support(label, prediction, labels=range(10), zero_division=0)[1]
    assert [row["accuracy"] for row in summary["per_class"]] == pytest.approx(recall.tolist())


@pytest.fixture(scope="module")
def whole_run(train: Any, runs: Path) -> Any:
    run = train("evaluated", "min_steps=4")
    yield run
    shutil.rmtree(run)
