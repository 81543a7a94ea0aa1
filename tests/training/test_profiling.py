"""A trace of some steps, as torch's profiler writes it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.support.rank_processes import Train
from vgg_ddp.training import environment
from vgg_ddp.training.profiling import phase, traced


def counted(file: Path) -> Counter[str]:
    return Counter(event.get("name") for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X")


def test_two_steps_of_a_training(train: Train) -> None:
    run = train("profiled", "min_steps=6", "profile=2")
    names = counted(run / "profile" / "trace.json")
    assert (names["step"], names["data"]) == (2, 2)
    assert sum(count for name, count in names.items() if str(name).startswith("Optimizer.step")) == 2
    assert [path.name for path in (run / "profile").iterdir()] == ["trace.json"]


@pytest.mark.parametrize(("left", "found"), [(1, 1), (2, 1), (9, 3)])
def test_a_training_of_few_steps_is_traced_as_far_as_it_goes(left: int, found: int, tmp_path: Path) -> None:
    with traced(3, left, tmp_path / "trace.json") as after_step:
        for _ in range(left):
            with phase("step"):
                pass
            after_step()
    assert counted(tmp_path / "trace.json")["step"] == found


def test_what_the_driver_tells_of_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form in which nvidia-smi prints it."""
    told = "NVIDIA H100 80GB HBM3, 580.65.06, 00000000:18:00.0, 81559 MiB, 345 MHz, 1980 MHz, 700.00 W"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{told}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (gpu,) = environment.gpus()
    assert (gpu["driver_version"], gpu["clocks.max.sm"], gpu["power.limit"]) == ("580.65.06", "1980 MHz", "700.00 W")
