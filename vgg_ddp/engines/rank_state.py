"""State that differs between ranks, in one checkpoint: gathered on rank 0, and given back, at any world size.

The tensor `key` of rank r is stored as `key@r`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import safetensors.torch
import torch
from torch import Tensor

from vgg_ddp.distributed.world import World


def gather(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Every rank's tensors on rank 0, nothing elsewhere. All ranks together."""
    ours = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    files = world.gather(safetensors.torch.save(ours))
    return {f"{key}@{rank}": t for rank, file in enumerate(files) for key, t in safetensors.torch.load(file).items()}


def take(stored: dict[str, Tensor], world: World, common_kinds: Collection[str] = ()) -> dict[str, Tensor]:
    """This rank's own tensors, and those that are the same on all ranks.

    Where another number of ranks saved them, each rank gets the mean over the ranks that saved.

    Args:
        common_kinds: kinds (a key ends with "/" and its kind) that must be the same on all ranks now, such as optimizer
            state if gradients are averaged, but may have differed when saved, as in local SGD: each rank gets the mean.
    """
    common = {key: tensor for key, tensor in stored.items() if "@" not in key}
    by_rank: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, tensor in stored.items():
        name, at, rank = key.rpartition("@")
        if at:
            by_rank[name][int(rank)] = tensor
    return common | {
        name: _of_rank(tensors, world, name.rpartition("/")[2] in common_kinds) for name, tensors in by_rank.items()
    }


def _of_rank(tensors: dict[int, Tensor], world: World, is_common: bool) -> Tensor:
    if len(tensors) == world.size and not is_common:
        return tensors[world.rank]
    return torch.stack([tensors[rank] for rank in sorted(tensors)]).mean(dim=0)
