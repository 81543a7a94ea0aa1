"""The keys of experiment trackers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from vgg_ddp.config.group import Group, key


class TrackingConfig(Group, frozen=True):
    """Weights & Biases and TensorBoard."""

    wandb: Annotated[
        Literal["auto", "online", "offline", "disabled"],
        key(
            "Weights & Biases; auto: as WANDB_MODE or WANDB_DISABLED says, else online where it is installed and logged in, "
            "else disabled"
        ),
    ] = "auto"
    tensorboard: Annotated[bool, key("write event files for TensorBoard to RUN/tensorboard")] = False
    project: Annotated[str | None, key("W&B project; null: WANDB_PROJECT, else vgg_ddp")] = None
    entity: Annotated[str | None, key("W&B team or user; null: WANDB_ENTITY, else the login's own")] = None
    group: Annotated[str | None, key("W&B group, to look at several runs as one; null: WANDB_RUN_GROUP, else none")] = (
        None
    )
    name: Annotated[str | None, key("W&B name of the run; null: WANDB_NAME, else the name of its folder")] = None
    tags: Annotated[list[str], key("W&B tags; none: those of WANDB_TAGS")] = msgspec.field(default_factory=list)
    artifacts: Annotated[bool, key("upload the newest and the best checkpoint as W&B artifacts")] = False
    mistakes: Annotated[int, key("mistakes to show as pictures, the most confident first", ge=0, le=1000)] = 36
    finish_seconds: Annotated[float, key("wait this long at the end for what is left to send, seconds", ge=0)] = 60.0
