"""What the throughput benchmark asks of a step, recorded by fake steps; and a data set smaller than a batch."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import step as of_cell
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.prediction import Prediction
from benchmarks.throughput.step import Timing
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError

CPU = torch.device("cpu")
ONE, TWO = World(0, 1, 0, 1, CPU), World(0, 2, 0, 2, CPU)


class FakeStep:
    """A step that records what it is asked."""

    def __init__(self, asked: list[Any], is_graph: bool = False) -> None:
        self.asked, self.is_graph, self.first_steps, self.flop_per_image = asked, is_graph, 3, 1.0
        self.peak_bytes: int | None = None

    def run(self, steps: int, reduce: bool = True) -> Timing:
        self.asked.append((steps, reduce))
        return Timing(1.0, 1.0, {"forward": 1.0})

    measure_peak = of_cell.Step.measure_peak


@pytest.mark.parametrize(("engine", "without"), [("ddp", True), ("deepspeed", False)])
def test_only_ddp_takes_a_step_without_a_reduction(engine: str, without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed counts it as a micro-batch, and would step twice."""
    asked: list[tuple[int, bool]] = []
    cell = Cell("vgg11", 32, 2, "fp32", "channels_last", engine=engine)
    monkeypatch.setattr(throughput, "build_steps", lambda *_: ({"cell": (cell, FakeStep(asked))}, {}))
    monkeypatch.setattr(throughput, "predict", lambda *_: {"cell": Prediction(1.0, 1.0, 1.0)})
    for name in ("matrix_product", "copy", "reference"):
        monkeypatch.setattr(throughput, name, lambda *_: lambda: 1.0)
    grid = {"networks": ["vgg11"], "image_sizes": [32], "batches": [2], "precisions": ["fp32"], "engines": [engine]}
    others = {"layouts": ["channels_last"], "compile": [False], "recompute": ["none"], "fused": [True]}
    options = Namespace(**grid, **others, steps=1, rounds=1, plain=False, profile=None)
    row = throughput.measure(options, TWO)[0]
    assert ((1, False) in asked) == without == ("communication" in row["seconds"])


@pytest.mark.parametrize(
    ("is_graph", "cells", "expected"),
    [
        (False, 1, [(3, True), "reset", (1, True), "peak"]),
        (True, 1, [(3, True), "peak"]),
        (False, 2, [(3, True)] * 2),
    ],
)
def test_the_peak_is_that_of_the_only_cell(
    is_graph: bool, cells: int, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read before anything else to be measured is in memory."""
    asked: list[Any] = []
    monkeypatch.setattr(throughput, "Step", lambda *_: FakeStep(asked, is_graph))
    monkeypatch.setattr(of_cell, "reset_peak", lambda device: asked.append("reset"))
    monkeypatch.setattr(of_cell, "peak_bytes", lambda world: asked.append("peak") or 7)
    grid = [Cell("vgg11", 32, batch, "fp32", "channels_last") for batch in range(1, cells + 1)]
    steps, _ = throughput.build_steps(grid, Namespace(compile=[False], data=None), ONE)
    assert asked == expected
    assert {step.peak_bytes for _, step in steps.values()} == ({7} if cells == 1 else {None})


def test_a_data_set_smaller_than_a_batch_is_refused_at_the_first_batch(few_digits: Path) -> None:
    batches = of_cell.loaded(Cell("vgg11", 32, 5000, "fp32", "channels_last"), ONE, few_digits, "auto")
    with pytest.raises(UserError, match="fewer than one batch of 5000; set --batches"):
        next(batches)
