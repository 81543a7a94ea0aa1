"""A checkpoint whose hashes are right is still checked: what does not fit is named, and nothing of it is loaded."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from vgg_ddp.errors import Damaged
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.contents import Expected, is_finite

Tensors = dict[str, Tensor]
WEIGHTS = {
    "features.0.weight": torch.zeros(4, 3, 3, 3),
    "features.1.running_mean": torch.zeros(4),
    "features.1.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    "classifier.0.weight": torch.zeros(2, 4),
}
PARAMETERS = frozenset({"features.0.weight", "classifier.0.weight"})
EXPECTED = Expected(WEIGHTS, PARAMETERS, ("exp_avg", "step"), averaged=True, steps_per_epoch=10, batch=4)
SCALER = torch.amp.GradScaler("cpu").state_dict()
WHERE = Path("RUN/checkpoints/step-00000025")


def parts() -> dict[str, Any]:
    """The contents of a whole checkpoint of step 25."""
    optimizer = {f"{name}/exp_avg": torch.ones_like(WEIGHTS[name]) for name in PARAMETERS}
    optimizer |= {f"{name}/step": torch.tensor(25.0) for name in PARAMETERS}
    optimizer |= {
        "classifier.0.weight/powersgd_error@1": torch.zeros(2, 4),
        "classifier.0.weight/powersgd_factor": torch.ones(1, 4),
    }
    state = msgspec.to_builtins(
        State(step=25, epoch=2, step_in_epoch=5, engine={"scaler": dict(SCALER)}, identity={"network": "vgg11"})
    )
    return {"model": dict(WEIGHTS), "ema": dict(WEIGHTS), "optimizer": optimizer, "state": state}


def files_of(made: dict[str, Any]) -> checkpoint.Files:
    files = checkpoint.encode(made["model"], made["optimizer"], State(), made["ema"])
    return {**files, "state.json": msgspec.json.encode(made["state"])}


def test_what_fits_passes() -> None:
    EXPECTED.check(WHERE, files_of(parts()))


def without(key: str) -> Callable[[Any], None]:
    return lambda values: values.pop(key)


def put(key: str, value: Any) -> Callable[[Any], None]:
    return lambda values: values.__setitem__(key, value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """JSON's decoder raises a different error for those."""
    with pytest.raises(Damaged, match=r"state\.json cannot be read"):
        EXPECTED.check(WHERE, {**files_of(parts()), "state.json": b'{"step": "\xe2("}'})
    (tmp_path / "manifest.json").write_bytes(b'{"sha256": {"\xe2(": ""}}')
    with pytest.raises(Damaged, match="is not whole"):
        checkpoint.read(tmp_path)


NOT_A_NUMBER = torch.full((4, 3, 3, 3), torch.nan)
FORGED: list[tuple[str, Callable[[Any], None], str]] = [
    ("model", without("features.0.weight"), "features.0.weight is missing"),
    ("model", put("features.9.weight", torch.zeros(1)), "features.9.weight is unknown"),
    ("model", put("features.0.weight", torch.zeros(4, 3, 3)), r"shape \[4, 3, 3\], not \[4, 3, 3, 3\]"),
    ("model", put("features.0.weight", NOT_A_NUMBER), "features.0.weight is not finite"),
    ("model", put("features.0.weight", torch.zeros(4, 3, 3, 3, dtype=torch.int8)), "is torch.int8"),
    ("model", put("features.0.weight", torch.zeros(4, 3, 3, 3, dtype=torch.bool)), "is torch.bool"),
    ("model", put("features.1.num_batches_tracked", torch.zeros(())), "is torch.float32, not torch.int64"),
    ("ema", put("features.1.running_mean", torch.tensor([torch.inf] * 4)), "running_mean is not finite"),
    (
        "optimizer",
        put("features.0.weight/exp_avg", torch.zeros(7)),
        r"of shape \[7\], the parameter has \[4, 3, 3, 3\]",
    ),
    ("optimizer", put("features.0.weight/exp_avg", NOT_A_NUMBER), "exp_avg is not finite"),
    ("optimizer", put("features.0.weight/step", torch.zeros(3)), r"step of shape \[3\]"),
    ("optimizer", put("features.0.weight/exp_avg@x", torch.zeros(4, 3, 3, 3)), "of no parameter"),
    ("optimizer", put("other/exp_avg", torch.zeros(1)), "other/exp_avg, which is of no parameter"),
    ("optimizer", without("classifier.0.weight/exp_avg"), "no classifier.0.weight/exp_avg"),
    ("optimizer", put("classifier.0.weight/powersgd_factor", torch.zeros(4)), r"powersgd_factor of shape \[4\]"),
    ("state", put("step", -1), "state.json cannot be read"),
    ("state", put("step", 2**70), "state.json cannot be read"),
    ("state", put("step", 36), "step 36 is not in epoch 2"),
    ("state", put("epoch", -1), "state.json cannot be read"),
    ("state", put("epoch", 26), "step 25 is not in epoch 26"),
    ("state", put("step_in_epoch", 11), "at its step 11, of 10"),
    ("state", put("totals", []), "state.json cannot be read"),
    ("state", put("best_accuracy", 7.0), "state.json cannot be read"),
    ("state", put("engine", {"scaler": {"scale": "large"}}), "state.json cannot be read"),
    ("state", put("engine", {"scaler": {"scale": 1.0}}), "its loss scale is none"),
    ("state", put("engine", {"scaler": {**SCALER, "scale": -1.0}}), "its loss scale is none"),
    ("state", put("engine", {"scaler": 3}), "its loss scale is none"),
]


@pytest.mark.parametrize(("part", "forge", "said"), FORGED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_named(part: str, forge: Callable[[Any], None], said: str) -> None:
    made = parts()
    forge(made[part])
    with pytest.raises(Damaged, match=said):
        EXPECTED.check(WHERE, files_of(made))


def test_finite_is_every_value_also_where_their_sum_is_not() -> None:
    assert all(map(is_finite, (torch.full((9,), 3e38), torch.full((9,), 2**63 - 1), torch.zeros(0), torch.tensor(1.0))))
    for values in ([torch.nan, 0.0], [torch.inf, -torch.inf], [torch.inf, 3e38]):
        assert not is_finite(torch.tensor(values))


def test_hundreds_of_forged_checkpoints_are_refused_without_a_traceback() -> None:
    """Random values in random places of the JSON and tensors: `Damaged`, unless the checkpoint still fits."""
    rng, refused = random.Random(0), 0
    tensors = [
        torch.zeros(0),
        torch.zeros(4),
        torch.zeros(2, 4),
        torch.zeros(4, 3, 3, 3, dtype=torch.float16),
        NOT_A_NUMBER,
    ]
    values = [None, -1, 2**64, 1e308, "text", [], {}, [1], {"a": {}}, True]
    for _ in range(300):
        made = parts()
        part = made[rng.choice(["model", "ema", "optimizer", "state"])]
        key = rng.choice([*part, "new", "new/exp_avg"])
        if rng.random() < 0.2:
            part.pop(key, None)
        else:
            part[key] = rng.choice(values if part is made["state"] else tensors)
        try:
            EXPECTED.check(WHERE, files_of(made))
        except Damaged:
            refused += 1
    assert refused > 150
