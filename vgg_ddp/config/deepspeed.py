"""The keys of the deepspeed engine, and the rules between them and other groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.config.group import Group, key

if TYPE_CHECKING:
    from vgg_ddp.config.schema import Config


class DeepSpeedConfig(Group, frozen=True):
    """Keys that only the deepspeed engine has."""

    stage: Annotated[
        Literal[0, 1, 2, 3],
        key("ZeRO: what is split over the ranks; 1: optimizer state, 2: and gradients, 3: and parameters"),
    ] = 1
    config: Annotated[
        str | None, key("a JSON file with more of DeepSpeed's own keys, e.g. bucket sizes; null: none")
    ] = None


def check_deepspeed(config: Config) -> None:
    """What the deepspeed engine cannot do.

    Raises:
        ValueError: naming the key.
    """
    for name, default in msgspec.structs.asdict(CommunicationConfig()).items():
        if getattr(config.communication, name) != default:
            raise ValueError(
                f"communication.{name} works with engine=ddp alone; DeepSpeed's own keys go into the file deepspeed.config"
            )
    if config.ranks_per_gpu > 1:  # DeepSpeed takes the GPU of a rank's own number
        raise ValueError("ranks_per_gpu works with engine=ddp alone; leave it out")
    if config.compile is not False:
        raise ValueError("compile works with engine=ddp alone; set compile=false")
    if config.optimizer.implementation == "apex":
        raise ValueError("optimizer.implementation=apex works with engine=ddp alone; leave it out")
    for name, frozen in (
        ("optimizer.features_rate=0", config.optimizer.features_rate == 0),
        ("model.whiten=true", config.model.whiten),
        ("model.norm_scale=false", not config.model.norm_scale),
    ):
        if frozen and config.deepspeed.stage == 3:
            raise ValueError(
                f"{name}: ZeRO 3 keeps no parameter whole that is not trained; set deepspeed.stage=2, 1 or 0"
            )
    if config.optimizer.name in ("lars", "lamb", "muon") and config.deepspeed.stage:
        raise ValueError(
            f"optimizer.name={config.optimizer.name} needs whole layers, which ZeRO cuts: set deepspeed.stage=0 or engine=ddp"
        )
