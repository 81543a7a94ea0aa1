"""Fair comparisons: each side computes in the arithmetic of its own precision, and its joules are of its own steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.device_speed import matrix_product
from benchmarks.measurement.step import TrainingStep, noise
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.step import Step, cached
from vgg_ddp.config import Config
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.optim.precision import set_arithmetic

CELLS = [Cell("vgg11", 16, 2, precision, "channels_last") for precision in ("fp32", "tf32")]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Reset the arithmetic after each test."""
    yield
    set_arithmetic(Config(precision="fp32"), ALONE.device)


def in_tf32() -> tuple[bool, bool]:
    """Whether float32 products, and those inside convolutions, may be computed in tf32."""
    return torch.get_float32_matmul_precision() == "high", torch.backends.cudnn.allow_tf32


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """The settings at each step and each matrix product."""
    found: list[tuple[bool, bool]] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            found.append(in_tf32())
            return call(*arguments, **named)

        return noted

    monkeypatch.setattr(TrainingStep, "run", noting(TrainingStep.run))
    monkeypatch.setattr(torch.Tensor, "__matmul__", noting(torch.Tensor.__matmul__))
    return found


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_cell_of_a_grid_has_the_arithmetic_of_its_precision(order: tuple[int, int], seen: list[Any]) -> None:
    cells = [CELLS[number] for number in order]
    steps = [Step(cell, ALONE, cached(cell, ALONE)) for cell in cells]
    products = [matrix_product(ALONE.device, cell.precision, seconds=1e-9) for cell in cells]
    for step, product in zip(steps, products):
        step.run(1)
        product()
    expected = [(cell.precision == "tf32",) * 2 for cell in cells]
    assert [setting for setting, _ in itertools.groupby(seen)] == expected
    assert len(seen) > 4  # a step and a product of each


@pytest.mark.parametrize("phases_apart", [False, True], ids=["CPU", "GPU"])
def test_joules_are_of_the_steps_that_are_divided_by(phases_apart: bool) -> None:
    """By a counter that adds one joule per step."""
    taken = itertools.count()
    batch = noise(2, 16, ALONE)
    batches = (batch for _ in taken)
    step = Step(CELLS[0], ALONE, batches, joules=lambda: float(repr(taken)[6:-1]))
    step.phases_apart = phases_apart
    timing = step.run(2)
    assert timing.joules == 2
    assert timing.phases["forward"] > 0


def test_a_loop_that_sets_other_arithmetic_is_not_compared() -> None:
    with pytest.raises(RuntimeError, match="cudnn_benchmark=False"), arithmetic("bf16"):
        torch.backends.cudnn.benchmark = False
    assert torch.backends.cudnn.benchmark  # as it was before


def test_peers_run_in_the_arithmetic_of_ours() -> None:
    """In the process of a peer, when it is built and in each round."""
    found = []

    def peer(task: peers.Task) -> peers.Seconds:
        found.append(in_tf32())
        return lambda steps: found.append(in_tf32()) or 1.0  # type: ignore[func-returns-value]

    class Connection:
        """The other end, which asks for one round and then ends."""

        asked = iter((1, 0))
        sent: list[float | str] = []  # noqa: RUF012

        def recv(self) -> int:
            return next(self.asked)

        send = sent.append

    torch.set_float32_matmul_precision("high")  # as if another side had set it in this process
    peers.work(peer, CELLS[0], 1, Connection())  # type: ignore[arg-type]
    torch.set_float32_matmul_precision("highest")
    assert found == [(False, False)] * 3  # when built, when tried, and in a round
    assert Connection.sent == ["", 1.0]
