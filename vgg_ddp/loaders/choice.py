"""Which loader `loader=auto` means for a split, on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data.splits import RawSplit, Split
from vgg_ddp.distributed.memory import total_bytes
from vgg_ddp.distributed.world import World


@dataclass(frozen=True)
class Choice:
    """A loader's name, and why it is this one."""

    name: str
    reason: str


def choose(name: str, split: Split, config: DataConfig, world: World) -> Choice:
    """The loader that `name` ("auto" or one by name) means for this split here.

    Resident where the decoded pixels fit into their share of the memory; else DALI where it is installed; else torch's.
    """
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
    if dali_is_installed():
        return Choice("dali", why)
    return Choice("torch", f"{why}, and NVIDIA DALI is not installed")


def dali_is_installed() -> bool:
    """Whether NVIDIA DALI can be imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
