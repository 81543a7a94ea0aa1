"""What the benchmark of engines checks before it starts ranks, and which rounds it counts."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from benchmarks import engines
from benchmarks.measurement import ranks
from vgg_ddp.errors import UserError


def options(**changes: Any) -> Namespace:
    small = {"network": "vgg11", "batch": 8, "precision": "fp32", "stages": [], "ranks": 2, "steps": 1, "rounds": 3}
    return Namespace(**(small | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 100, "ranks": 3}, r"--batch 100 does not divide over \[3\] ranks"),
        ({"ranks": 2}, "--ranks 2: this host has 1 GPUs"),
    ],
)
def test_ranks_that_cannot_be_started_are_refused(
    changes: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=said):
        engines.measure(options(**changes))


def test_the_seconds_of_the_phases_are_those_of_the_rounds_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        """Slow in the warm-up, then slower from round to round."""

        def __init__(self, *_: object) -> None:
            self.seconds = iter([100.0, 1.0, 2.0, 3.0])

        def run(self, task: object) -> dict[str, float]:
            return dict.fromkeys(("forward", "backward", "update", "step"), next(self.seconds))

        def stop(self) -> None:
            pass

    monkeypatch.setattr(engines, "Group", Group)
    (row,) = engines.measure(options())
    assert row["seconds"] == {"forward": 2.0, "backward": 2.0, "update": 2.0}
