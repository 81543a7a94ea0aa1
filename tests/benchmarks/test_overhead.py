"""What the benchmark of the loop counts into a step."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.overhead import WholeRecorder
from vgg_ddp.distributed.world import World
from vgg_ddp.run.checkpoint import State


def test_the_writing_of_a_row_is_in_the_step_and_what_comes_between_steps_is_not() -> None:
    state = State(identity={})
    log = SimpleNamespace(write=lambda row: time.sleep(0.05))
    progress = SimpleNamespace(update=lambda row, seconds_left: None)
    recorder = WholeRecorder(state, World(0, 1, 0, 1, torch.device("cpu")), 2, 10, 10, log, progress)
    for _ in range(2):
        recorder.add(torch.tensor(1.0), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
        state.step += 1
        recorder.step_done(0.1, every_steps=1)
    in_steps = state.step_seconds + 2 * 0.05
    assert in_steps <= recorder.seconds == pytest.approx(state.seconds)
    counted = recorder.seconds
    time.sleep(0.01)
    recorder.row()  # without a step
    assert recorder.seconds == counted < state.seconds
