"""The keys of `communication`, and the rules between them and other groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from vgg_ddp.config.group import Group, key

if TYPE_CHECKING:
    from vgg_ddp.config.schema import Config


class CommunicationConfig(Group, frozen=True):
    """What the ranks send one another, and when. A single rank ignores all of it."""

    compression: Annotated[
        Literal["none", "bf16", "fp16", "powersgd"],
        key("how gradients travel: as they are, in 16 bits, or as PowerSGD's low-rank factors"),
    ] = "none"
    powersgd_rank: Annotated[int, key("powersgd: rank of the factors", ge=1)] = 2
    powersgd_warmup_steps: Annotated[int, key("powersgd: first steps that send whole gradients", ge=0)] = 100
    bucket_mb: Annotated[
        Annotated[float, Meta(gt=0)] | Literal["auto"],
        key("size of a gradient bucket, MiB (25, the first 1: DDP's default); auto: the quickest in trials at start"),
    ] = 25.0
    synchronise_every: Annotated[
        int, key("local SGD: steps of each rank on its own before the ranks' parameters are averaged; 1 is off", ge=1)
    ] = 1
    outer_learning_rate: Annotated[
        float, key("learning rate of the step along the averaged change (local SGD: 1; DiLoCo: 0.7)", gt=0)
    ] = 1.0
    outer_momentum: Annotated[float, key("its Nesterov momentum (local SGD: 0; DiLoCo: 0.9)", ge=0, lt=1)] = 0.0
    split_head: Annotated[
        Literal["none", "host", "all"],
        key("spread the two layers of 4096 of the paper's head over the ranks of each host, or over all ranks"),
    ] = "none"

    def __post_init__(self) -> None:
        if self.synchronise_every == 1:
            if self.outer_learning_rate != 1 or self.outer_momentum:
                raise ValueError("communication.outer_... needs communication.synchronise_every above 1")
            return
        if self.compression == "powersgd":
            raise ValueError("communication.synchronise_every averages parameters, which powersgd cannot; use bf16")
        if self.split_head != "none":
            raise ValueError(
                "communication.synchronise_every needs the whole network on every rank: set split_head=none"
            )
        if self.bucket_mb == "auto":
            raise ValueError("communication.synchronise_every sends no buckets; leave out communication.bucket_mb=auto")


def check_communication(config: Config) -> None:
    """The rules between `communication` and other groups.

    Raises:
        ValueError: naming the two keys that do not go together.
    """
    communication = config.communication
    every = communication.synchronise_every
    if every > 1:
        if config.model.sync_batch_norm:
            raise ValueError("model.sync_batch_norm needs ranks in step; set communication.synchronise_every=1")
        if config.ema:
            raise ValueError(
                "ema averages after every step, when ranks differ: set ema=0 or communication.synchronise_every=1"
            )
        if config.precision == "fp16":
            raise ValueError(
                "precision=fp16 scales each rank's loss for itself; use bf16 with communication.synchronise_every"
            )
        if (config.checkpoint.every_steps or 0) % every:
            raise ValueError(
                f"checkpoint.every_steps must be a multiple of communication.synchronise_every ({every}), when ranks agree"
            )
    if communication.compression == "powersgd" and config.precision == "fp16":
        raise ValueError("communication.compression=powersgd remembers errors, which precision=fp16 scales; use bf16")
    if communication.split_head != "none":
        _check_split_head(config)


def _check_split_head(config: Config) -> None:
    if config.model.head != "paper":
        raise ValueError("communication.split_head splits the paper's head; set model.head=paper")
    for name, clash in (
        ("ema", config.ema > 0),
        ("compile", config.compile),
        ("precision=fp16", config.precision == "fp16"),
        ("optimizer.clip_norm", config.optimizer.clip_norm is not None),
        (f"optimizer.name={config.optimizer.name}", config.optimizer.name in ("lars", "lamb")),
    ):
        if clash:
            raise ValueError(
                f"communication.split_head leaves a rank a shard of the head; {name} needs it whole: leave out one"
            )
