"""What the ranks exchange in an evaluation: batch statistics before it, answers after it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.distributed.world import World


def of_all_ranks(
    logits: list[Tensor],
    labels: list[Tensor],
    indices: list[NDArray[np.int64]],
    samples: NDArray[np.int64],
    world: World,
) -> Predictions | None:
    """The answers of all ranks to `samples`, sorted; on rank 0, None elsewhere.

    Args:
        logits, labels, indices: of each batch of this rank, float [n, classes], int64 [n] and int64 [n].
    """
    ours = [
        torch.cat(logits).cpu().numpy() if logits else np.empty((0, 0), np.float32),
        torch.cat(labels).cpu().numpy() if labels else np.empty(0, np.int64),
        np.concatenate(indices) if indices else np.empty(0, np.int64),
    ]
    world.activity.go_on(waits=True)
    gathered = [world.gather(np.ascontiguousarray(array).tobytes()) for array in ours]
    if not world.is_main:
        return None
    label, index = (np.frombuffer(b"".join(parts), np.int64) for parts in gathered[1:])
    every_logit = np.frombuffer(b"".join(gathered[0]), np.float32).reshape(len(index), -1)
    order = np.argsort(index, kind="stable")
    assert np.array_equal(index[order], np.sort(samples)), "an image was evaluated twice or not at all"
    return Predictions(label[order], every_logit[order], index[order])


def use_rank_zero_buffers(network: nn.Module, world: World) -> None:
    """Give every rank the running batch statistics of rank 0, which are the ones that are saved."""
    buffers = list(network.buffers())
    if world.size > 1 and buffers:  # none without batch normalisation
        values = torch.cat([buffer.flatten().double() for buffer in buffers]).cpu()  # one message for all of them
        torch.distributed.broadcast(values, 0)
        for buffer, value in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(value.view_as(buffer))
