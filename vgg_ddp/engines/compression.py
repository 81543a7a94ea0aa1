"""What a gradient bucket looks like on its way between the ranks: as it is, or cast to 16 bits (PowerSGD: `powersgd`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

Hook = Callable[[Any, Any], torch.futures.Future[Tensor]]
CAST_HOOKS: dict[str, Hook] = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


class NoCompression:
    """Gradients are sent as they are, by DDP's own all-reduce: the interface of every compression."""

    def attach(self, wrapped: DistributedDataParallel) -> None:
        """Have `wrapped` reduce its buckets this way."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """On rank 0 the tensors to save, by `parameter/kind` (`rank_state` where ranks differ), and other values."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from a saved state: this rank's tensors of it, as `rank_state.take` gives them."""


class CastCompression(NoCompression):
    """Gradients are cast to bf16 or fp16, summed so, and cast back: torch's own communication hooks."""

    def __init__(self, dtype: str) -> None:
        self._hook = CAST_HOOKS[dtype]

    def attach(self, wrapped: DistributedDataParallel) -> None:
        """Register the hook of this type."""
        wrapped.register_comm_hook(None, self._hook)
