"""What the benchmark of trackers reads from a training's log."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.tracking import between_rows


def row(step: int, seconds: float, scope: str = "steps") -> dict[str, Any]:
    return {"scope": scope, "step": step, "seconds": seconds, "images_per_second": 1e9}


def test_what_blocks_in_writing_a_row_counts_and_a_validation_does_not() -> None:
    """Neither is in the rows' images/s."""
    rows = [row(step, step * 0.5) for step in range(1, 13)]
    rows += [row(12, 8.0, "epoch"), row(13, 9.0), row(14, 11.0)]
    assert between_rows(rows) == pytest.approx([0.5, 0.5, 2.0])  # of steps 11, 12 and 14
