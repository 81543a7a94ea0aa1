"""Precision: the number format of the forward pass, and torch's process-wide settings of arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from vgg_ddp.config import Config

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that keep its kernels from the processor's bf16 instructions.
ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The mixed-precision context of a forward pass; does nothing in fp32 and tf32."""
    assert precision != "auto", "resolve() comes first"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision), enabled=precision in dtypes)


def alone(word: str) -> list[str]:
    """The `of_all` of a process without other ranks."""
    return [word]


def set_arithmetic(
    config: Config, device: torch.device, of_all: Callable[[str], list[str]] = alone
) -> tuple[Config, str]:
    """Set how float32 products are computed, and whether kernels must be deterministic; returns what `resolve` does."""
    config, reason = resolve(config, device, of_all)
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = config.determinism == "fast"
    deterministic = config.determinism == "run"
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler, for seconds
        torch.use_deterministic_algorithms(deterministic)
    return config, reason


def resolve(config: Config, device: torch.device, of_all: Callable[[str], list[str]] = alone) -> tuple[Config, str]:
    """The configuration with a precision in place of "auto", and why it is this one; "" where none was to be chosen.

    fp16 is not chosen where a rule of the configuration forbids it; where the ranks' devices prefer different formats,
    fp32 is: gradients that only some ranks scale, as fp16 needs, cannot be averaged.

    Args:
        of_all: gives what each rank calls it with, as `World.of_all`.
    """
    if config.precision != "auto":
        return config, ""
    name, reason = fastest(device)
    names = sorted(set(of_all(name)))
    if len(names) > 1:
        name, reason = "fp32", f"the ranks' devices are fastest in different formats: {', '.join(names)}"
    if name == "fp16":
        try:  # through convert, which checks the rules between keys
            return msgspec.convert({**msgspec.to_builtins(config), "precision": "fp16"}, Config), reason
        except msgspec.ValidationError as error:
            name, reason = "fp32", f"{reason}, which does not fit here: {error}"
    return msgspec.structs.replace(config, precision=name), reason


def fastest(device: torch.device) -> tuple[str, str]:
    """The precision that `device` computes in fastest, and the reason in a few words.

    Where a processor has no bf16 instructions, bf16 is emulated: a third of the speed of fp32 on AVX2.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bf16", "the GPU multiplies bf16"
        if major == 7:
            return "fp16", f"the GPU (compute capability {major}.{minor}) multiplies fp16, not bf16"
        return "fp32", f"the GPU (compute capability {major}.{minor}) has no tensor cores"
    if bf16_in_hardware():
        return "bf16", "the processor multiplies bf16"
    return "fp32", "the processor has no bf16 instructions"


def bf16_in_hardware() -> bool:
    """Whether the processor multiplies bf16 numbers itself (AVX512-BF16, AMX, or Arm's BF16), and oneDNN may use it."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return limit not in ISA_WITHOUT_BF16 and bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
