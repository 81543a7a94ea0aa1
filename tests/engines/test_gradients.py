"""Steps with non-finite gradients: they are not taken, leave nothing behind, and are counted."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.support.rank_processes import vgg_ddp
from vgg_ddp.config import Config
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.engines import build
from vgg_ddp.engines.gradients import MOST_IN_A_ROW
from vgg_ddp.errors import UserError
from vgg_ddp.model import vgg
from vgg_ddp.run.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "tests/support/faults"
SKIP: dict[str, Any] = {
    "network": "vgg11",
    "batch": 8,
    "precision": "fp32",
    "accumulation": 2,
    "loss": {"on_nonfinite": "skip"},
    "ema": 0.9,
}


def engine(**keys: Any) -> Any:
    torch.manual_seed(0)
    network = vgg("A", batch_norm=True, head="compact", num_classes=3, image_size=16)
    return build(msgspec.convert({**SKIP, **keys}, Config), network, ALONE)


def take(trained: Any, seed: int, bad: bool = False) -> None:
    """Take a step of two micro-batches; if `bad`, the second has an infinite pixel."""
    torch.manual_seed(seed)
    for last in (False, True):
        images, labels = torch.randn(4, 3, 16, 16), torch.randint(0, 3, (4,))
        if bad and last:
            images[1, 2, 3, 4] = torch.inf
        loss, _ = trained.forward(images, labels, last)
        trained.backward(loss)
    trained.step()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nothing_of_a_step_stays_that_is_not_taken(clip: float | None) -> None:
    disturbed, other = engine(optimizer={"clip_norm": clip}), engine(optimizer={"clip_norm": clip})
    for seed in (1, 2, 3):
        take(disturbed, seed, bad=seed == 2)
        if seed != 2:
            take(other, seed)
    for name, tensor in disturbed.weights().items():
        assert torch.equal(tensor, other.weights()[name]), name
    (tensors, values), (expected, others) = disturbed.state(), other.state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items()) and tensors
    assert disturbed.figures() == {"skipped": values.pop("skipped")} == {"skipped": 1}
    assert others.pop("skipped") == 0
    assert values == others
    again = engine()
    again.load_state(*disturbed.state())
    assert again.figures() == {"skipped": 1}


@pytest.mark.seconds
def test_in_half_precision_the_scaler_skips_and_it_is_counted_too() -> None:
    trained = engine(precision="fp16")
    trained._scaler._init_scale = 1.0  # with which nothing overflows
    take(trained, 1)
    before = {name: tensor.clone() for name, tensor in trained.weights().items()}
    take(trained, 2, bad=True)
    assert trained.figures() == {"skipped": 1} and trained._scaler.get_scale() == 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.weights().items())


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_norm_is_that_of_the_whole_batch_s_gradient_before_it_is_clipped(clip: float | None) -> None:
    trained = engine(optimizer={"clip_norm": clip}, loss={}, log={"gradient_norm": True})
    torch.manual_seed(0)
    network = vgg("A", batch_norm=True, head="compact", num_classes=3, image_size=16)
    torch.manual_seed(1)
    for _ in range(2):
        images, labels = torch.randn(4, 3, 16, 16), torch.randint(0, 3, (4,))
        (torch.nn.functional.cross_entropy(network(images), labels) / 2).backward()
    squares = sum(float(parameter.grad.double().square().sum()) for parameter in network.parameters())
    take(trained, 1)
    assert trained.figures() == {"gradient_norm": pytest.approx(squares**0.5, rel=1e-3)}
    assert squares**0.5 > 0.02


@pytest.mark.seconds
def test_a_training_that_has_diverged_ends_all_the_same() -> None:
    trained = engine()
    for _ in range(MOST_IN_A_ROW - 1):
        take(trained, 1, bad=True)
    take(trained, 2)
    for _ in range(MOST_IN_A_ROW - 1):
        take(trained, 1, bad=True)
    with pytest.raises(
        UserError, match=r"of 20 steps in a row are not finite, and none was taken: the training has div"
    ):
        take(trained, 1, bad=True)


def test_it_stops_by_itself() -> None:
    trained = engine(loss={})
    take(trained, 1, bad=True)
    assert not trained.figures() and any(tensor.isnan().any() for tensor in trained.weights().values())


@pytest.mark.processes
def test_all_ranks_skip_the_step_that_is_not_finite_on_one(recipe: Path, runs: Path) -> None:
    fault = {"rank": 1, "phase": "forward", "step": 3, "what": "nan"}
    words = ["min_steps=8", "loss.on_nonfinite=skip", "nproc=2", "checkpoint.every_steps=2", "log.every_steps=1"]
    place = {"PYTHONPATH": f"{FAULTS}:{ROOT}", "FAULT": json.dumps(fault)}
    run = runs / "skips"
    done = vgg_ddp("train", str(recipe), *words, f"run.dir={run}", folder=runs, **place)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["scope"] == "steps"]
    assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert all(row["loss"] is not None for row in rows)


def test_the_second_pass_of_a_sharpness_aware_step_has_the_memory_of_the_first_gradients() -> None:
    trained = engine(optimizer={"sharpness_radius": 0.05})
    first: list[weakref.ref[Any]] = []
    forward = trained._inner.forward

    def looked_at(*arguments: Any, **named: Any) -> Any:
        if first:
            assert all(gradient() is None for gradient in first)
        return forward(*arguments, **named)

    trained._inner.forward = looked_at
    loss, _ = trained.forward(torch.randn(4, 3, 16, 16), torch.randint(0, 3, (4,)), True)
    trained.backward(loss)
    parameters = [p for group in trained.optimizer.param_groups for p in group["params"]]
    first += [weakref.ref(p.grad) for p in parameters]
    trained.step()
    assert first and all(p.grad is None for p in parameters)
