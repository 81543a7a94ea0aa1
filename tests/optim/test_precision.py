"""precision=auto: what the device computes in fastest, said with its reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vgg_ddp.config import Config
from vgg_ddp.config.schema import CommunicationConfig
from vgg_ddp.optim import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def capability(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]) -> None:
    """Pretend that the GPU, which need not exist, has this compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)


@pytest.mark.parametrize(
    ("version", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
    ids=["H100", "A100", "T4", "V100", "P100"],
)
def test_gpus_by_their_tensor_cores(version: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, version)
    config, reason = precision.resolve(Config(), GPU)
    assert config.precision == expected and reason


def test_fp16_is_passed_over_where_a_rule_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, (7, 5))
    config, reason = precision.resolve(Config(communication=CommunicationConfig(compression="powersgd")), GPU)
    assert config.precision == "fp32"
    assert "powersgd" in reason


def test_ranks_whose_devices_differ_compute_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank in fp16 scales its gradients, which no other may average with its own."""
    capability(monkeypatch, (7, 5))
    config, reason = precision.resolve(Config(), GPU, lambda word: ["bf16", word])
    assert config.precision == "fp32" and "bf16, fp16" in reason
    assert precision.resolve(Config(), GPU, lambda word: [word, word])[0].precision == "fp16"


def test_what_was_asked_for_stays() -> None:
    for name in ("fp32", "tf32", "bf16", "fp16"):
        assert precision.resolve(Config(precision=name), CPU) == (Config(precision=name), "")  # type: ignore[arg-type]


@pytest.mark.processes
def test_a_processor_that_is_kept_from_bf16_computes_in_fp32() -> None:
    """By oneDNN's own switch, which makes any processor compute like one without bf16 instructions."""
    code = "import torch; from vgg_ddp.optim.precision import fastest; print(fastest(torch.device('cpu'))[0])"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp32"


def test_bf16_where_the_processor_says_so() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert precision.bf16_in_hardware() == bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
