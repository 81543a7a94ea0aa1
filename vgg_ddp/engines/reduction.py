"""How gradients are averaged over the ranks while the backward pass runs: DDP's messages, their size and what is in them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError

Hook = Callable[[Any, Any], torch.futures.Future[torch.Tensor]]
CAST_HOOKS: dict[str, Hook] = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


@dataclass(frozen=True)
class Buckets:
    """Sizes of DDP's messages, MiB: each but the first, and the first."""

    size: float
    first: float

    @property
    def name(self) -> str:
        return f"{self.size:g}, first {self.first:g}"

    def arguments(self) -> dict[str, Any]:
        """For DDP's constructor."""
        if self.first == self.size:
            return {"bucket_cap_mb": self.size}
        if "bucket_cap_mb_list" in inspect.signature(DistributedDataParallel).parameters:
            return {"bucket_cap_mb_list": [self.first, self.size]}
        if self == USUAL:
            return {}
        raise UserError(
            f"torch {torch.__version__} cannot size the first bucket; set communication.first_bucket_mb=null, or use torch 2.14"
        )


USUAL = Buckets(25.0, 1.0)
# What "auto" chooses from: few messages have less overhead, many begin earlier and leave less to wait for at the end.
CANDIDATES = (USUAL, Buckets(25.0, 25.0), Buckets(8.0, 1.0), Buckets(1024.0, 1024.0))


def wrap(
    network: nn.Module, config: CommunicationConfig, buckets: Buckets, hook: Hook | None, world: World
) -> DistributedDataParallel:
    """DDP around `network`, with its messages sized by `buckets` and reduced by `hook`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers, 2.11 knows no other
        wrapped = DistributedDataParallel(
            network,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # batch statistics stay each rank's own; rank 0's are saved
            gradient_as_bucket_view=config.gradient_views,
            static_graph=config.static_graph,
            **buckets.arguments(),
        )
    if hook is not None:
        wrapped.register_comm_hook(None, hook)
    return wrapped
