"""The reliability diagram against scikit-learn's calibration curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from vgg_ddp.trackers.media import Evaluation, expected_calibration_error, reliability_bins

IMAGES = st.lists(st.tuples(st.floats(0.001, 1.0), st.booleans()), min_size=1, max_size=60)


@given(IMAGES, st.integers(1, 20))
def test_bins_are_those_of_scikit_learn(images: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([c for c, _ in images]), np.array([right for _, right in images])
    rows = reliability_bins(confidence, correct, bins)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=bins, strategy="uniform", pos_label=True)
    assert [row[4] for row in rows] == pytest.approx(accuracy.tolist())
    assert [row[3] for row in rows] == pytest.approx(mean.tolist())
    assert sum(row[2] for row in rows) == len(images)


def test_what_the_summary_says_of_calibration_is_shown(tmp_path: Path) -> None:
    """The bins of an evaluation that has them; the empty one is left out."""
    full = {"low": 0.5, "high": 1.0, "images": 3, "confidence": 0.8, "accuracy": 0.5}
    empty = {"low": 0.0, "high": 0.5, "images": 0, "confidence": None, "accuracy": None}
    calibration = {"bins": [empty, full], "expected_calibration_error": 0.3}
    summary = {"split": "test", "accuracy": 0.5, "loss": 1.0, "calibration": calibration}
    nothing = np.zeros(0, np.int64)
    evaluation = Evaluation(summary, nothing, nothing, np.zeros(0), nothing, None, tmp_path)  # type: ignore[arg-type]
    assert evaluation.reliability == [[0.5, 1.0, 3, 0.8, 0.5]]
    assert evaluation.scalars == {"test/accuracy": 0.5, "test/loss": 1.0, "test/calibration_error": 0.3}


def test_calibration_error_by_hand() -> None:
    """Two images of confidence 0.9, one right; two of 0.6, both right: (2 x 0.4 + 2 x 0.4) / 4."""
    rows = reliability_bins(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True]), bins=10)
    assert expected_calibration_error(rows) == pytest.approx(0.4)
