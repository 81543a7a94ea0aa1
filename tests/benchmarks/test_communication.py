"""The communication benchmark computes on the CPU on any machine; a training that fails gives one line."""

from __future__ import annotations

import io
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.communication import rank, training
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError

OPTIONS = Namespace(train="nosuch", train_steps=16, seeds=[0], choices=["bf16"], precision="fp32", loss=1.0)


def test_ranks_compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    @contextmanager
    def joined(timeout: object, devices: Any) -> Iterator[World]:
        asked.append(devices.device)
        yield World(0, 1, 0, 1, torch.device("cpu"))

    monkeypatch.setattr(rank, "joined", joined)
    for name in ("keep_freed_memory", "os.sched_setaffinity", "torch.set_num_threads"):
        monkeypatch.setattr(f"benchmarks.communication.rank.{name}", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    rank.main(0, "lo")
    assert asked == ["cpu"]
    assert "device=cpu" in training.recipe(OPTIONS)


def test_a_training_that_fails_gets_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 2, "", "a warning\nvgg-ddp: nosuch: there is no such source\n")
    monkeypatch.setattr(training.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(
        UserError, match=r"--train nosuch, bf16: ended with 2: vgg-ddp: nosuch: there is no such source$"
    ):
        training.train(OPTIONS, [0, 1])
