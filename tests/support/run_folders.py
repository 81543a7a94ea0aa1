"""What a run left in its folder, and whether two runs are the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.rank_processes import Ranks, wait_until
from vgg_ddp.errors import EXIT_STOPPED

# Measurements of the machine; the rest of a row must be reproducible.
SECONDS_IN_A_ROW = {"images_per_second", "data_wait", "memory_bytes", "ranks", "seconds"}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run that may be running: a line that is not whole yet is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in SECONDS_IN_A_ROW} for row in rows]


def latest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text()


def state(run: Path) -> dict[str, Any]:
    return json.loads((latest(run) / "state.json").read_text())


def assert_same_bits(found: Path, expected: Path, name: str) -> None:
    ours, theirs = (load_file(latest(run) / f"{name}.safetensors") for run in (found, expected))
    assert ours.keys() == theirs.keys()
    different = [key for key in ours if not torch.equal(bits(ours[key]), bits(theirs[key]))]
    assert not different


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def stop(ranks: Ranks, rank: int = 0, number: int = signal.SIGTERM) -> None:
    """Signal a rank of a training that was started with a pause, once it pauses; it ends with a checkpoint."""
    wait_until(ranks.paused, ranks)
    ranks.send(number, rank)
    ranks.send(signal.SIGCONT)
    codes = ranks.wait()
    assert codes == [EXIT_STOPPED] * len(codes), ranks.stderr


def assert_undisturbed(resumed: Path, whole: Path) -> None:
    """Every tensor, the best so far, and the log are those of the undisturbed run."""
    names = {path.name for path in latest(whole).glob("*.safetensors")}
    assert names == {path.name for path in latest(resumed).glob("*.safetensors")}
    for name in names:
        assert_same_bits(resumed, whole, name.removesuffix(".safetensors"))
    for key in ("step", "epoch", "step_in_epoch", "totals", "best_accuracy", "best_epoch", "stopped", "engine"):
        assert state(resumed)[key] == state(whole)[key], key
    assert without_seconds(metrics(resumed)) == without_seconds(metrics(whole))
    answers = [{path.name: path.read_bytes() for path in (run / "answers").iterdir()} for run in (resumed, whole)]
    assert answers[0] == answers[1]
    found, expected = (json.loads((run / "evaluation" / "summary.json").read_text()) for run in (resumed, whole))
    assert found["loss"] == expected["loss"]
    assert found["confusion"] == expected["confusion"]


def assert_same_steps(
    found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor], apart: float = 1e-3
) -> None:
    """Each parameter took the same path but for rounding: the ends differ by at most `apart` of the path's length."""
    assert found.keys() == expected.keys()
    for name in found:
        way = (expected[name] - start[name]).double().norm()
        assert way > 0, name
        assert (found[name] - expected[name]).double().norm() < apart * way + 1e-6 * expected[name].norm(), name
