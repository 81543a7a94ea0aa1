"""Precision: which arithmetic the forward pass uses, and the process-wide switches of torch."""

from __future__ import annotations

import torch

from vgg_ddp.config import Config


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The mixed-precision context of a forward pass; does nothing in fp32 and tf32."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision), enabled=precision in dtypes)


def set_arithmetic(config: Config) -> None:
    """Set how float32 products are computed, and whether kernels must be deterministic."""
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = config.determinism == "fast"
    torch.use_deterministic_algorithms(config.determinism == "run")
