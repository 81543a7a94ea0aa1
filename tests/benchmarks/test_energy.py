"""The processor's energy counters are summed over packages, and across a wrap-around."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.measurement.energy import meter

CPU = torch.device("cpu")


def package(folder: Path, number: int, microjoules: int) -> Path:
    place = folder / f"intel-rapl:{number}"
    place.mkdir()
    (place / "max_energy_range_uj").write_text("1000000000\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"


def test_joules_of_all_packages_go_on_over_the_end_of_a_counter(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 5_000_000), package(tmp_path, 1, 999_000_000)
    joules = meter(CPU, tmp_path)
    assert joules is not None
    assert joules() == 0.0
    first.write_text("7500000\n")
    assert joules() == pytest.approx(2.5)
    second.write_text("2000000\n")  # from 999 J, past the wrap at 1,000 J, to 2 J
    assert joules() == pytest.approx(5.5)


def test_a_machine_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert meter(CPU, tmp_path) is None
    package(tmp_path, 0, 1).write_text("garbage")
    assert meter(CPU, tmp_path) is None
