"""Small runs that trackers follow, and what W&B wrote of them, read back by W&B's own reader."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.rank_processes import Ranks

Start = Callable[..., Ranks]


def wandb_records(segment: Path) -> list[dict[str, Any]]:
    """The records of an offline run's folder."""
    (file,) = segment.glob("run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return [json.loads(line) for line in done.stdout.splitlines()]


def wandb_segments(run: Path) -> list[Path]:
    """The folders that W&B wrote for a run, one per process, in order."""
    return sorted((run / "wandb").glob("offline-run-*"))


def history(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was logged at each step; fails where a step went back."""
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps = [item["_step"] for item in items]
    assert steps == sorted(set(steps))
    return dict(zip(steps, items))


def latest(run: Path) -> str:
    return (run / "checkpoints/latest").read_text()


def wait_until_gone(run: Path) -> None:
    """Wait until the trackers of a killed training notice that it is gone, and end by themselves."""
    deadline = time.monotonic() + 300
    while followers(run):
        assert time.monotonic() < deadline, "a tracker outlives its training"
        time.sleep(0.05)


def followers(run: Path) -> list[str]:
    """The command lines of the processes that follow `run`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "vgg_ddp.trackers.follower" in line and str(run) in line:
            found.append(line)
    return found


def status(run: Path) -> list[str]:
    """Every fallback that the run took."""
    return json.loads((run / "environment.json").read_text())["fallbacks"]


@pytest.fixture(scope="module")
def start_with(runs: Path, recipe: Path) -> Start:
    """Starts a command's ranks with variables of the environment: `start_with(module, environment, arguments, size)`."""

    def begin(module: str, environment: dict[str, str], arguments: list[str], size: int = 1) -> Ranks:
        output = runs / f"output {len(list(runs.iterdir()))}"
        return Ranks(_main, (module, environment, arguments), size, output)

    return begin


def _main(module: str, environment: dict[str, str], arguments: list[str]) -> int:
    os.environ.update(environment)
    # As in a process that is not forked.
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return int(importlib.import_module(module).main(arguments))
