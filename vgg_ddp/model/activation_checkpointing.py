"""Activation checkpointing: the backward pass computes activations again in place of keeping them (Chen et al. 2016).

A stage of the network, up to its pool, is one segment. "stages" keeps the input of a segment alone and runs it twice.
"normalisation" also keeps the outputs of its convolutions (selective activation checkpointing, e.g. Korthikanti et al. 2022,
section 5): only what is cheap runs twice, normalisation, ReLU and pooling, whose outputs are half of all activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "normalisation", "stages"]  # values of the key `recompute`
KEPT = (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default)


def stages(features: nn.Sequential) -> list[nn.Sequential]:
    """The layers of a VGG in groups that end with a pool, or with the ReLU after it."""
    starts, pooled = [0], False
    for number, module in enumerate(features):
        if pooled and isinstance(module, nn.Conv2d):
            starts.append(number)
        pooled = (pooled and not isinstance(module, nn.Conv2d)) or isinstance(module, nn.MaxPool2d)
    return [features[start:end] for start, end in zip(starts, [*starts[1:], len(features)])]


def checkpointed(features: nn.Sequential, images: Tensor, what: Checkpointing) -> Tensor:
    """`features(images)`, of which the backward pass computes `what` again. Nothing in `features` may be random."""
    for stage in stages(features):
        contexts = partial(_contexts, stage, keep_products=what == "normalisation")
        images = checkpoint(stage, images, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return images


def _contexts(
    stage: nn.Sequential, keep_products: bool
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a segment's forward pass, and of its recomputation."""
    if not keep_products:
        return ExitStack(), _statistics_kept(stage)
    first, second = create_selective_checkpoint_contexts(_policy, allow_cache_entry_mutation=True)
    return first, _both(_statistics_kept(stage), second)  # outermost, so that copies are not recorded


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    # Without batch norm the in-place ReLU changes a kept output; applied to it again, it changes nothing.
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _statistics_kept(stage: nn.Sequential) -> Iterator[None]:
    """While recomputing, let batch norms update copies of their running statistics: these count the batch already."""
    norms = [module for module in stage if isinstance(module, nn.BatchNorm2d)]
    buffers = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: buffer.clone() for name, buffer in norm._buffers.items() if buffer is not None}
    try:
        yield
    finally:
        for norm, kept in zip(norms, buffers):
            norm._buffers = kept


@contextmanager
def _both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
