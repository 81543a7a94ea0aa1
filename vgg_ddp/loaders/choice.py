"""Which loader `loader=auto` means for a split, on this machine, and what it can do there."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from vgg_ddp.augment.geometry import Geometry, resized_shapes
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data import nvidia_dali
from vgg_ddp.data.settling import too_small
from vgg_ddp.data.splits import EncodedSplit, RawSplit, Split
from vgg_ddp.distributed.memory import total_bytes
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError

SHARED_MEMORY = "/dev/shm"
MORE = "give the container more, e.g. docker run --shm-size=1g"


@dataclass(frozen=True)
class Choice:
    """A loader's name, why it was chosen, and what was used for lack of NVIDIA DALI ("": nothing)."""

    name: str
    reason: str
    fallback: str = ""


def choose(name: str, split: Split, config: DataConfig, world: World, evaluated: bool = False) -> Choice:
    """The loader that `name` ("auto" or one by name) means for this split here.

    Resident where the decoded pixels fit into their share of the memory; else DALI where it runs; else torch's.

    Args:
        evaluated: whether the split is evaluated on: never noise, which a training may be on.
    """
    choice = _choose("auto" if evaluated and name == "synthetic" else name, split, config, world)
    if choice.name != "resident" or not isinstance(split, EncodedSplit):
        return choice
    problem = nvidia_dali.problem(world.device.type == "cuda")
    if not problem:
        return choice
    return replace(
        choice, reason=f"{choice.reason}; {problem}", fallback=f"{problem}: the images were decoded without it"
    )


def _choose(name: str, split: Split, config: DataConfig, world: World) -> Choice:
    if name != "auto":
        return Choice(name, "asked for")
    size, room = split.decoded_bytes, config.resident_share * total_bytes(world)
    if size is None:
        why = f"the images of {split.name} differ in size"
    elif config.residency == "sharded":
        return Choice("resident", "data.residency is sharded")
    elif isinstance(split, RawSplit) and world.device.type == "cpu":
        return Choice("resident", "the pixels are stored decoded, and mapped into memory")
    elif size <= room:
        return Choice(
            "resident", f"{size / 1e6:.0f} MB of decoded pixels fit into {room / 1e6:.0f} MB set apart for them"
        )
    else:
        why = f"decoded, {size / 1e9:.1f} GB do not fit into {room / 1e9:.1f} GB set apart for them"
    problem = nvidia_dali.problem(world.device.type == "cuda")
    if not problem:
        return Choice("dali", why)
    return Choice("torch", f"{why}; {problem}", f"{problem}: the torch loader loaded the images")


def shortage_for_workers(config: DataConfig, world: World, batch: int) -> str:
    """Why the torch loader's workers cannot hand over batches of `batch` images here; "" where they can.

    They do so in shared memory, and would wait for ever if it were full.
    """
    workers = world.cores_for_loading() if config.workers == "auto" else config.workers
    if not workers:
        return ""
    ahead = workers * config.prefetch + 1  # and the one that is computed on
    needed = world.local_size * ahead * batch * 3 * config.image_size**2
    try:
        multiprocessing.get_context("fork").Lock()
        free = shutil.disk_usage(SHARED_MEMORY).free
    except (OSError, ImportError) as error:
        return f"{SHARED_MEMORY} cannot be used ({error})"
    if needed <= free:
        return ""
    return f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, batches made ahead take {needed / 1e6:.0f} MB"


def workers_left_out(config: DataConfig, world: World, batch: int) -> list[str]:
    """A line if the torch loader runs without workers, as they cannot hand over batches of `batch` images; else none.

    Raises:
        UserError: they cannot, and `data.workers` is a number.
    """
    shortage = shortage_for_workers(config, world, batch)
    if shortage and config.workers != "auto":
        raise UserError(f"data.workers={config.workers}: {shortage}; use data.workers=auto, or {MORE}")
    return [f"data.workers=0: {shortage}; {MORE}"] if shortage else []


def fallbacks(choice: Choice, config: DataConfig, world: World, batch: int) -> list[str]:
    """What a chosen loader does in place of what was asked for, a line each.

    Raises:
        UserError: see `workers_left_out`.
    """
    workers = workers_left_out(config, world, batch) if choice.name == "torch" else []
    return [choice.fallback, *workers] if choice.fallback else workers


def with_cores(config: DataConfig, world: World) -> DataConfig:
    """The same with a number in place of each "auto" of workers and threads."""
    chosen = {
        name: world.cores_for_loading() for name in ("workers", "decode_threads") if getattr(config, name) == "auto"
    }
    return msgspec.structs.replace(config, **chosen)


def check_sizes(split: Split, geometry: Geometry) -> None:
    """Raises a `UserError` if an image of the split is too small for the crop."""
    if geometry.area is not None:
        return
    shorter = None if geometry.resize is None else np.array([geometry.resize[0]])
    shapes = resized_shapes(split.shapes(np.arange(len(split))), shorter)
    small = np.flatnonzero(shapes.min(axis=1) < geometry.size)
    if len(small):
        raise too_small(split.key(int(small[0])), shapes[small[0]], geometry.size)
