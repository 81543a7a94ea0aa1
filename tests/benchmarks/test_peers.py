"""A side that cannot be measured does not spoil the others' results."""

from __future__ import annotations

import os
from argparse import Namespace
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.peers import Seconds, Task
from vgg_ddp.errors import UserError

pytestmark = [pytest.mark.host, pytest.mark.seconds]


def quick(task: Task) -> Seconds:
    return lambda steps: 0.5 * steps


def broken(task: Task) -> Seconds:
    raise RuntimeError("no such kernel\nand more")


def killed(task: Task) -> Seconds:
    os._exit(1)


def measure(monkeypatch: pytest.MonkeyPatch, **sides: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(peers, "PEERS", sides)
    monkeypatch.setattr(peers, "OURS", "quick")
    monkeypatch.setattr(peers, "installed", lambda names: dict.fromkeys(names, "1"))
    grid = {"networks": ["vgg11"], "batches": [2], "image_size": 32, "precision": "fp32"}
    return peers.measure(Namespace(**grid, peers=list(sides), threads=1, steps=1, rounds=1))


def test_a_peer_that_cannot_be_built_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int | None] = []
    join = BaseProcess.join

    def joined(process: BaseProcess, timeout: float | None = None) -> None:
        join(process, timeout)
        ended.append(process.exitcode)

    monkeypatch.setattr(BaseProcess, "join", joined)
    one, two, three = measure(monkeypatch, quick=quick, broken=broken, killed=killed)
    assert sorted(map(str, ended)) == ["0", "0", "1"]  # no wait timed out, which would give None
    assert (one["side"], one["images_per_second"], one["ours_to_theirs"]) == ("quick", 4.0, 1.0)
    assert two == {"name": "vgg11 32px 2 fp32 channels_last broken", "left_out": "no such kernel"}
    assert "the process of killed has ended" in three["left_out"]


def test_where_no_side_can_be_measured_the_first_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="channels_last quick: no such kernel"):
        measure(monkeypatch, quick=broken, broken=broken)
