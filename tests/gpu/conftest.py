"""What only a GPU can show. Every test takes its device from the fixture `device`, and is skipped where there is no GPU.

Run these tests by themselves, since GPUs are hidden from all other tests. `pytest tests/gpu --gpu-rehearsal` runs the
same bodies on the CPU, so that a mistake in them is found where there is no GPU.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.rank_processes import Launch, Ranks, start
from vgg_ddp.distributed.world import World

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark these tests. A rehearsal keeps the first and the last case of each, which is enough to find a mistake."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker("gpu")
    if config.getoption("--gpu-rehearsal") and not torch.cuda.is_available():
        cases = [list(group) for _, group in groupby(ours, lambda item: item.nodeid.partition("[")[0])]
        items[:] = [item for group in cases for item in dict.fromkeys([group[0], group[-1]])]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU; in a rehearsal without one, the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not request.config.getoption("--gpu-rehearsal"):
        pytest.skip("no NVIDIA GPU here, or other tests beside, which hide it; --gpu-rehearsal takes the CPU")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def world(device: torch.device) -> World:
    return World(0, 1, 0, 1, device)


@pytest.fixture(scope="session")
def precision(device: torch.device) -> str:
    """The precision of trainings on the device: a CPU may have to emulate bf16."""
    return "bf16" if device.type == "cuda" else "fp32"


@pytest.fixture(scope="module")
def launch(runs: Path, recipe: Path, device: torch.device) -> Launch:
    """As the fixture of all tests, but on the devices, which ranks share where there are fewer."""

    def begin(name: str, *words: str, size: int = 1, pause: dict[str, Any] | None = None) -> Ranks:
        on_each = -(-size // max(1, torch.cuda.device_count()))
        place = [f"device={device.type}", f"nproc={size}", f"ranks_per_gpu={on_each}"]
        arguments = [str(recipe), f"run.dir={runs / name}", *place, *words]
        return start("vgg_ddp.train", arguments, size, runs / f"{name} output", pause, warm=device.type == "cpu")

    return begin
