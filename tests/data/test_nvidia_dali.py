"""Whether NVIDIA DALI runs here: found by importing it in a separate process, and by asking the driver."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgg_ddp.data import nvidia_dali
from vgg_ddp.errors import UserError


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clear what is cached, and hide that this process has imported DALI."""
    monkeypatch.delitem(sys.modules, "nvidia.dali.fn", raising=False)
    nvidia_dali.problem.cache_clear()
    yield
    nvidia_dali.problem.cache_clear()


@pytest.mark.skipif(not nvidia_dali.built_cuda(), reason="NVIDIA DALI is not installed")
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('libcufft.so.12: cannot open shared object file')", "libcufft.so.12"),
        ("import os; os.abort()", "code -6"),
    ],
)
def test_one_whose_import_fails_is_told_by_its_last_words(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia" / "dali").mkdir(parents=True)
    (tmp_path / "nvidia" / "__init__.py").touch()
    (tmp_path / "nvidia" / "dali" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the process that tries the import
    problem = nvidia_dali.problem(on_gpu=False)
    assert "cannot be imported" in problem and told in problem
    with pytest.raises(UserError, match=r"^loader=dali does not run here: .*loader=torch$"):
        nvidia_dali.require(on_gpu=False)


@pytest.mark.skipif(not nvidia_dali.built_cuda(), reason="NVIDIA DALI is not installed")
@pytest.mark.parametrize(
    ("driver", "built", "told"),
    [
        ((12, 4), 13, "NVIDIA DALI is for CUDA 13, and the driver for CUDA 12.4 at most: pip install 'vgg_ddp[dali-cuda12]'"),
        ((11, 8), 12, "NVIDIA DALI is for CUDA 12, and the driver for CUDA 11.8 at most: install a newer driver"),
        ((13, 0), 12, ""),
        ((12, 0), 12, ""),
    ],
)  # fmt: skip
def test_a_driver_must_know_the_cuda_that_dali_was_built_for(
    driver: tuple[int, int], built: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia_dali, "driver_cuda", lambda: driver)
    monkeypatch.setattr(nvidia_dali, "built_cuda", lambda: built)
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", sys)  # as if the import had succeeded
    assert nvidia_dali.problem(on_gpu=True) == told
    assert nvidia_dali.problem(on_gpu=False) == ""  # its CPU operators need no driver
