"""The rules between groups of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgg_ddp.config.communication import check_communication
from vgg_ddp.config.deepspeed import check_deepspeed

if TYPE_CHECKING:
    from vgg_ddp.config.schema import Config


def check_between_groups(config: Config) -> None:
    """Raises a `ValueError` for the first rule between groups that `config` breaks."""
    smallest = min([config.data.image_size, *config.data.train_sizes])
    if config.model.head == "paper" and smallest < 32:
        raise ValueError(f"model.head=paper needs images of 32 pixels or more, not {smallest}; use model.head=compact")
    if config.model.head == "paper" and set(config.data.train_sizes) - {config.data.image_size}:
        raise ValueError("data.train_sizes needs model.head=compact: the paper's head is built for one size")
    if config.augment.crop_padding >= config.data.image_size:
        raise ValueError(
            f"augment.crop_padding ({config.augment.crop_padding}) must be less than data.image_size ({config.data.image_size})"
        )
    if config.augment.cutout >= config.data.image_size:
        raise ValueError(
            f"augment.cutout ({config.augment.cutout}) must be less than data.image_size ({config.data.image_size})"
        )
    if config.augment.scale_jitter is not None and config.augment.scale_jitter[0] < config.data.image_size:
        raise ValueError(f"augment.scale_jitter starts below data.image_size ({config.data.image_size})")
    if config.evaluate.scales and min(config.evaluate.scales) < config.data.image_size:
        raise ValueError(
            f"evaluate.scales ({min(config.evaluate.scales)}) is smaller than data.image_size ({config.data.image_size})"
        )
    if config.network == "A-LRN" and config.model.batch_norm:
        raise ValueError("network=A-LRN has its own normalisation; set model.batch_norm=false")
    if config.optimizer.name == "muon" and config.optimizer.muon_fixed_norm and not config.model.batch_norm:
        raise ValueError(
            "optimizer.muon_fixed_norm scales weights, which only a batch norm undoes: set it false, or model.batch_norm=true"
        )
    if (needing := key_that_needs_validation(config)) and config.data.validation == 0:
        raise ValueError(f"{needing} needs a validation split; set data.validation above 0")
    if config.optimizer.features_rate == 0 and config.model.initialize_from is None:
        raise ValueError("optimizer.features_rate=0 would freeze random convolutions; set model.initialize_from")
    if config.lookahead and (config.ema == 0 or config.engine != "ddp"):
        raise ValueError("lookahead goes on from the averaged weights: set ema above 0, e.g. ema=0.77, and engine=ddp")
    if config.batch % config.accumulation:
        raise ValueError(
            f"batch ({config.batch}) does not divide into accumulation ({config.accumulation}) micro-batches"
        )
    if config.recompute != "none" and config.compile is not False:
        raise ValueError("recompute works with compile=false alone: torch.compile chooses itself what to compute again")
    if config.recompute != "none" and config.model.sync_batch_norm:
        raise ValueError("recompute would send model.sync_batch_norm's messages twice; use one of them")
    if config.data.balance_classes and config.loss.class_weights == "balanced":
        raise ValueError("data.balance_classes and loss.class_weights=balanced would balance twice; use one of them")
    _check_gradients(config)
    _check_second_passes(config)
    check_communication(config)
    if config.engine == "deepspeed":
        check_deepspeed(config)


def _check_gradients(config: Config) -> None:
    skips = config.loss.on_nonfinite == "skip"
    looks = "loss.on_nonfinite=skip" if skips else "log.gradient_norm=true" if config.log.gradient_norm else ""
    not_alike = {  # where ranks would see different gradients, or a non-finite value would persist
        f"engine={config.engine}": config.engine != "ddp",
        "communication.synchronise_every": config.communication.synchronise_every > 1,
        "communication.split_head": config.communication.split_head != "none",
        "communication.compression=powersgd": skips and config.communication.compression == "powersgd",
    }
    if looks and (other := next((name for name, present in not_alike.items() if present), "")):
        raise ValueError(f"{looks} does not go with {other}; use one of them")


def _check_second_passes(config: Config) -> None:
    """Check `optimizer.sharpness_radius` and `loss.hardest`, each of which takes a second pass over a step's images."""
    size, largest = config.loss.hardest_size, config.data.image_size
    if size is not None and size >= largest:
        raise ValueError(f"loss.hardest_size ({size}) must be less than data.image_size ({largest}), to save time")
    if size is not None and config.model.head == "paper":
        raise ValueError("loss.hardest_size needs model.head=compact: the paper's head is built for one size")
    without = {
        f"engine={config.engine}": config.engine != "ddp",
        "communication.split_head": config.communication.split_head != "none",
    }
    sharpness = {**without, "communication.compression=powersgd": config.communication.compression == "powersgd"}
    hardest = {**without, "augment.mixup": config.augment.mixup > 0, "augment.cutmix": config.augment.cutmix > 0}
    for name, wanted, others in (
        ("optimizer.sharpness_radius", config.optimizer.sharpness_radius > 0, sharpness),
        ("loss.hardest", config.loss.hardest < 1, hardest),
    ):
        if wanted and (other := next((name for name, present in others.items() if present), "")):
            raise ValueError(f"{name} does not go with {other}; use one of them")


def key_that_needs_validation(config: Config) -> str:
    """The first key that means nothing without images to validate on, with its value; "" if there is none."""
    keys = {
        "schedule.name=plateau": config.schedule.name == "plateau",
        "stop.patience": config.stop.patience is not None,
        "evaluate.checkpoint=best": config.evaluate.checkpoint == "best",
    }
    return next((name for name, present in keys.items() if present), "")
