"""What trackers show of an evaluation is what its summary says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import make_run, write_json
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation.stored import read_evaluation
from vgg_ddp.trackers.media import Media


def test_figures_bins_and_mistakes_are_those_of_the_summary(tmp_path: Path) -> None:
    """The bins of the reliability diagram that hold images, and the surest mistakes in their order."""
    run = make_run(tmp_path / "run")
    evaluation = read_evaluation(run.path)
    media = Media(evaluation, run.dataset, run.path / "report/index.html")
    summary, calibration = evaluation.summary, evaluation.summary["calibration"]
    bins = [row for row in calibration["bins"] if row["images"]]
    assert 0 < len(bins) < len(calibration["bins"])
    assert media.reliability == [[row[k] for k in ("low", "high", "images", "confidence", "accuracy")] for row in bins]
    assert media.scalars == {
        "test/accuracy": summary["accuracy"],
        "test/top5_accuracy": summary["top5_accuracy"],
        "test/loss": summary["loss"],
        "test/calibration_error": calibration["expected_calibration_error"],
    }
    split = run.dataset.split("test")
    for mistake, sample in zip(media.mistakes(9), summary["surest_mistakes"][:9], strict=True):
        assert np.array_equal(mistake.pixels, split.decode(sample))
        assert mistake.caption.startswith(f"{media.classes[run.label[sample]]} taken for ")


def test_an_evaluation_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = read_evaluation(run.path).summary
    del summary["why"]
    write_json(run.path / "evaluation/summary.json", summary)
    with pytest.raises(UserError, match="was evaluated by an earlier version; run: vgg-ddp evaluate"):
        read_evaluation(run.path)
