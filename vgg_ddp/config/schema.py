"""Every key of a configuration: its type, default, unit, meaning, and the rules it must obey.

Each group is one frozen struct that owns its validation. `vgg-ddp train --help` is made from this file.
Nothing here imports torch: a rejected config answers at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vgg_ddp.errors import UserError

NETWORKS = ("A", "A-LRN", "B", "C", "D", "E", "vgg11", "vgg13", "vgg16", "vgg19")
BUILT_IN_SOURCES = ("cifar10", "cifar100", "digits")


def _key(meaning: str, **bounds: float) -> Meta:
    return Meta(description=meaning, **bounds)  # type: ignore[call-overload]


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A group of keys. Subclasses check rules between their own keys in `__post_init__`."""


class ModelConfig(Group, frozen=True):
    batch_norm: Annotated[bool, _key("batch normalisation after every convolution")] = True
    head: Annotated[
        Literal["compact", "paper"],
        _key("compact: global max pool and one linear layer; paper: two layers of 4096 with dropout"),
    ] = "compact"
    initialization: Annotated[
        Literal["kaiming", "glorot", "paper"],
        _key("initial weights: Kaiming's, Glorot's, or the paper's normal of variance 0.01"),
    ] = "kaiming"
    dropout: Annotated[float, _key("dropout probability in the paper's head", ge=0, lt=1)] = 0.5
    sync_batch_norm: Annotated[
        bool,
        _key("batch normalisation over the batch of all ranks, not each rank's own; costs messages in every layer"),
    ] = False

    def __post_init__(self) -> None:
        if self.sync_batch_norm and not self.batch_norm:
            raise ValueError("model.sync_batch_norm needs model.batch_norm=true")


class DataConfig(Group, frozen=True):
    source: Annotated[
        str,
        _key("cifar10, cifar100, digits, an archive, an image folder, a tar of one, or a prepared dataset"),
    ] = "cifar10"
    fallback: Annotated[Literal["none", "digits"], _key("what to train on where cifar10 or cifar100 cannot be had")] = (
        "none"
    )
    directory: Annotated[str, _key("where downloads and prepared datasets are kept")] = "datasets"
    resize: Annotated[
        Annotated[int, Meta(ge=8)] | None, _key("resize the shorter side to this first, pixels; null keeps the size")
    ] = None
    image_size: Annotated[int, _key("side of the square that the network sees, pixels", ge=16)] = 32
    train_sizes: Annotated[
        list[Annotated[int, Meta(ge=16)]],
        _key("sizes to shrink training images to, one per epoch, pixels; later epochs use image_size"),
    ] = []
    validation: Annotated[float, _key("share of the training set held out for validation, stratified", ge=0, lt=1)] = (
        0.1
    )
    resident_share: Annotated[
        float, _key("loader=auto keeps the decoded images on the device if they fit into this share of it", ge=0, le=1)
    ] = 0.25
    residency: Annotated[
        Literal["whole", "sharded"],
        _key("resident loader: every rank keeps all images, or its share, exchanging what a batch needs"),
    ] = "whole"
    workers: Annotated[int, _key("worker processes of the torch loader, per rank", ge=0)] = 1
    decode_threads: Annotated[int, _key("CPU threads of the dali loader, per rank", ge=1)] = 1
    prefetch: Annotated[int, _key("batches made ready ahead of the step", ge=1)] = 2

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"data.resize ({self.resize}) is smaller than data.image_size ({self.image_size})")


class AugmentConfig(Group, frozen=True):
    crop_padding: Annotated[int, _key("reflect-pad by this before the random crop, pixels", ge=0)] = 0
    flip: Annotated[
        bool | Literal["alternating"],
        _key("flip left to right: with probability 1/2, or (alternating) each image in every second epoch"),
    ] = False
    rotation: Annotated[float, _key("rotate by a uniform angle up to this, degrees", ge=0, le=180)] = 0.0
    scale_jitter: Annotated[
        Annotated[list[Annotated[int, Meta(ge=8)]], Meta(min_length=2, max_length=2)] | None,
        _key("resize the shorter side to a random size in this range, as the paper does, e.g. [256, 512], pixels"),
    ] = None
    random_resized_crop: Annotated[
        Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=2, max_length=2)] | None,
        _key("scale a random box to the image size; its share of the area, e.g. [0.08, 1]"),
    ] = None
    brightness: Annotated[float, _key("colour jitter: brightness times 1 ± up to this", ge=0, le=1)] = 0.0
    contrast: Annotated[float, _key("colour jitter: contrast times 1 ± up to this", ge=0, le=1)] = 0.0
    saturation: Annotated[float, _key("colour jitter: saturation times 1 ± up to this", ge=0, le=1)] = 0.0
    hue: Annotated[float, _key("colour jitter: hue turned by up to this, turns", ge=0, le=0.5)] = 0.0
    colour_shift: Annotated[
        float, _key("shift colours along the set's principal components, standard deviations (the paper: 0.1)", ge=0)
    ] = 0.0
    cutout: Annotated[int, _key("blank a random square of this side, pixels", ge=0)] = 0
    mixup: Annotated[float, _key("mix pairs of images, by Beta(this, this); 0 is off", ge=0)] = 0.0
    cutmix: Annotated[float, _key("paste boxes between pairs of images, by Beta(this, this); 0 is off", ge=0)] = 0.0
    randaugment: Annotated[
        Annotated[int, Meta(ge=0, le=30)] | None,
        _key("RandAugment's magnitude; loader=torch alone has it; null is off"),
    ] = None
    randaugment_operations: Annotated[int, _key("RandAugment's operations on each image", ge=1)] = 2

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def changes_appearance(self) -> bool:
        strengths = (self.brightness, self.contrast, self.saturation, self.hue, self.colour_shift, self.cutout)
        return self.mixes or any(strengths)

    def __post_init__(self) -> None:
        for name in ("scale_jitter", "random_resized_crop"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"augment.{name} must rise: {limits}")
        if self.random_resized_crop is not None and (self.scale_jitter is not None or self.crop_padding):
            raise ValueError(
                "augment.random_resized_crop chooses its own box; leave out augment.scale_jitter and augment.crop_padding"
            )


class OptimizerConfig(Group, frozen=True):
    name: Annotated[
        Literal["sgd", "adam", "adamw", "lars", "lamb"],
        _key("the optimizer; lars and lamb scale each layer's step, for large batches"),
    ] = "sgd"
    implementation: Annotated[
        Literal["auto", "torch", "apex"],
        _key(
            "auto: NVIDIA apex's FusedSGD and FusedLAMB on a GPU where that apex is compiled, else torch's fused ones"
        ),
    ] = "auto"
    learning_rate: Annotated[float, _key("peak learning rate (sgd 0.1, adam 0.001, lars 2, lamb 0.01)", gt=0)] = 0.1
    momentum: Annotated[float, _key("sgd, lars: momentum", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, _key("sgd: Nesterov momentum")] = True
    beta1: Annotated[float, _key("adam, adamw, lamb: decay of the gradient's mean", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, _key("adam, adamw, lamb: decay of the squared gradient's mean", ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, _key("adam, adamw, lamb, lars: added to divisors", gt=0)] = 1e-8
    trust_coefficient: Annotated[float, _key("lars: share of a layer's norm that a step of rate 1 moves it", gt=0)] = (
        0.001
    )
    weight_decay: Annotated[
        float, _key("weight decay: added to the gradient (sgd, adam, lars), or apart from it (adamw, lamb)", ge=0)
    ] = 5e-4
    decay_biases_and_norms: Annotated[bool, _key("decay biases and normalisation weights too")] = False
    clip_norm: Annotated[
        Annotated[float, Meta(gt=0)] | None, _key("clip the global gradient norm to this; null is off")
    ] = None

    def __post_init__(self) -> None:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0; set optimizer.nesterov=false")
        if self.implementation == "apex" and self.name not in ("sgd", "lamb"):
            raise ValueError(f"optimizer.implementation=apex has sgd and lamb, not {self.name}; use torch")


class ScheduleConfig(Group, frozen=True):
    name: Annotated[
        Literal["constant", "step", "cosine", "one_cycle"], _key("learning-rate schedule after the warm-up")
    ] = "cosine"
    warmup_epochs: Annotated[float, _key("linear warm-up from zero, epochs", ge=0)] = 0.0
    milestones: Annotated[list[float], _key("step: epochs at which the learning rate is multiplied by gamma")] = []
    gamma: Annotated[float, _key("step: factor at each milestone", gt=0)] = 0.1
    peak_at: Annotated[float, _key("one_cycle: share of training at which the learning rate peaks", gt=0, lt=1)] = 0.25
    final: Annotated[float, _key("cosine, one_cycle: share of the peak left at the end", ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if self.name == "step" and not self.milestones:
            raise ValueError("schedule.name=step needs schedule.milestones, e.g. schedule.milestones='[60, 80]'")
        if self.milestones != sorted(self.milestones):
            raise ValueError("schedule.milestones must rise")


class LossConfig(Group, frozen=True):
    label_smoothing: Annotated[float, _key("label smoothing of the training loss", ge=0, lt=1)] = 0.0
    implementation: Annotated[
        Literal["auto", "torch", "apex"],
        _key("auto: NVIDIA apex's fused cross entropy on a GPU where that apex is compiled, else torch's"),
    ] = "auto"


class CommunicationConfig(Group, frozen=True):
    """What the ranks send one another, and when. Nothing here has an effect on a single rank."""

    compression: Annotated[
        Literal["none", "bf16", "fp16", "powersgd"],
        _key("how gradients travel: as they are, in 16 bits, or as PowerSGD's low-rank factors"),
    ] = "none"
    powersgd_rank: Annotated[int, _key("powersgd: rank of the factors", ge=1)] = 2
    powersgd_warmup_steps: Annotated[int, _key("powersgd: first steps that send whole gradients", ge=0)] = 100
    powersgd_error_feedback: Annotated[
        bool, _key("powersgd: add what was lost in a step to the next step's gradient")
    ] = True
    bucket_mb: Annotated[
        Annotated[float, Meta(gt=0)] | Literal["auto"],
        _key("gradients reduced in one message, MiB; auto: sizes are tried for a few steps at the start"),
    ] = 25.0
    first_bucket_mb: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        _key("the first message of a step, MiB; null: as bucket_mb"),
    ] = 1.0
    gradient_views: Annotated[bool, _key("gradients lie in the messages' own memory: no copy")] = True
    static_graph: Annotated[bool, _key("DDP may take for granted that every step uses the same parameters")] = False
    synchronise_every: Annotated[
        int, _key("steps that each rank takes on its own before the ranks' parameters are averaged; 1 is off", ge=1)
    ] = 1
    outer_learning_rate: Annotated[
        float, _key("learning rate of the step along the averaged change (local SGD: 1; DiLoCo: 0.7)", gt=0)
    ] = 1.0
    outer_momentum: Annotated[float, _key("its Nesterov momentum (local SGD: 0; DiLoCo: 0.9)", ge=0, lt=1)] = 0.0
    split_head: Annotated[
        Literal["none", "host", "all"],
        _key("spread the two layers of 4096 of the paper's head over the ranks of each host, or over all ranks"),
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


class StopConfig(Group, frozen=True):
    patience: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        _key("stop after this many epochs without a better validation accuracy; null is off"),
    ] = None
    min_delta: Annotated[float, _key("gain in validation accuracy that counts as better", ge=0, le=1)] = 0.0


class CheckpointConfig(Group, frozen=True):
    every_steps: Annotated[
        Annotated[int, Meta(ge=1)] | None, _key("save every this many steps; null: only at epoch ends")
    ] = None
    keep: Annotated[int, _key("newest checkpoints to keep, beside the best", ge=1)] = 2


class EvaluateConfig(Group, frozen=True):
    batch: Annotated[int, _key("images in one forward pass, per rank", ge=1)] = 500
    every_epochs: Annotated[int, _key("validate after every this many epochs, and the last", ge=1)] = 1
    checkpoint: Annotated[Literal["last", "best"], _key("which checkpoint the final evaluation takes")] = "last"


class DeepSpeedConfig(Group, frozen=True):
    """What the deepspeed engine takes beside the keys of all engines."""

    stage: Annotated[
        Literal[0, 1, 2, 3],
        _key("ZeRO: what is split over the ranks; 1: optimizer state, 2: and gradients, 3: and parameters"),
    ] = 1
    config: Annotated[
        str | None, _key("a JSON file with more of DeepSpeed's own keys, e.g. bucket sizes; null: none")
    ] = None


class RunConfig(Group, frozen=True):
    dir: Annotated[str, _key("the run's directory")] = "runs/latest"


class LogConfig(Group, frozen=True):
    every_steps: Annotated[int, _key("write training metrics every this many steps", ge=1)] = 10


class TrackingConfig(Group, frozen=True):
    wandb: Annotated[
        Literal["auto", "online", "offline", "disabled"],
        _key(
            "Weights & Biases; auto: as WANDB_MODE says, else online where it is installed and logged in, else disabled"
        ),
    ] = "auto"
    tensorboard: Annotated[bool, _key("write event files for TensorBoard to RUN/tensorboard")] = False
    project: Annotated[str, _key("W&B project")] = "vgg_ddp"
    entity: Annotated[str | None, _key("W&B team or user; null: the login's own")] = None
    group: Annotated[str | None, _key("W&B group, to look at several runs as one; null is none")] = None
    name: Annotated[str | None, _key("W&B name of the run; null: the name of its folder")] = None
    tags: Annotated[list[str], _key("W&B tags")] = []
    artifacts: Annotated[bool, _key("upload the newest and the best checkpoint as W&B artifacts")] = False
    mistakes: Annotated[int, _key("mistakes to show as pictures, the most confident first", ge=0, le=1000)] = 36
    finish_seconds: Annotated[float, _key("wait this long at the end for what is left to send, seconds", ge=0)] = 60.0


class Config(Group, frozen=True):
    network: Annotated[
        Literal["A", "A-LRN", "B", "C", "D", "E", "vgg11", "vgg13", "vgg16", "vgg19"],
        _key("configuration of the paper's table 1, or its usual name"),
    ] = "vgg16"
    loader: Annotated[
        Literal["auto", "resident", "dali", "torch", "synthetic"],
        _key("data loader; auto: resident where the decoded images fit into memory, else dali where it is installed"),
    ] = "auto"
    batch: Annotated[int, _key("global batch: images in one optimizer step over all ranks", ge=1)] = 256
    accumulation: Annotated[int, _key("micro-batches a rank cuts its share of the batch into", ge=1)] = 1
    fit_memory: Annotated[
        bool, _key("cut the share into more micro-batches, by trial at start, if a step does not fit into memory")
    ] = False
    memory_share: Annotated[float, _key("fit_memory may take this share of the memory that is free", gt=0, le=1)] = 0.8
    epochs: Annotated[float, _key("passes over the training set; a fraction is allowed", gt=0)] = 100
    min_steps: Annotated[int, _key("train at least this many steps, however small the data set", ge=0)] = 0
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"],
        _key("arithmetic of the step; auto: bf16 where the device multiplies it, else fp16 on GPUs that do, else fp32"),
    ] = "auto"
    channels_last: Annotated[bool, _key("channels-last memory layout")] = True
    engine: Annotated[Literal["ddp", "deepspeed"], _key("what runs the distributed step")] = "ddp"
    nproc: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        _key("ranks on this host; auto: one per GPU, or per NUMA node without one"),
    ] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        _key("CPU threads of each rank; auto: the cores divided by the ranks"),
    ] = "auto"
    seed: Annotated[int, _key("seed of weights, order and augmentation", ge=0, lt=2**32)] = 0
    resume: Annotated[Literal["never", "auto"], _key("auto: continue a run found in run.dir; never: refuse it")] = (
        "never"
    )
    compile: Annotated[
        bool | Literal["stages", "auto"],
        _key(
            "torch.compile: the network whole (true) or stage by stage (stages); auto: the quickest, measured at start"
        ),
    ] = False
    recompute: Annotated[
        Literal["none", "normalisation", "stages"],
        _key("activations to compute again in the backward pass, not keep: saves memory, costs time, same bits"),
    ] = "none"
    determinism: Annotated[
        Literal["fast", "run"], _key("run: same bits every time at one world size; fast: not promised on a GPU")
    ] = "fast"
    ema: Annotated[float, _key("decay of the averaged weights per step; 0 is off", ge=0, lt=1)] = 0.0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    communication: CommunicationConfig = CommunicationConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    stop: StopConfig = StopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    run: RunConfig = RunConfig()
    log: LogConfig = LogConfig()
    tracking: TrackingConfig = TrackingConfig()

    def __post_init__(self) -> None:
        smallest = min([self.data.image_size, *self.data.train_sizes])
        if self.model.head == "paper" and smallest < 32:
            raise ValueError(
                f"model.head=paper needs images of 32 pixels or more, not {smallest}; use model.head=compact"
            )
        if self.model.head == "paper" and set(self.data.train_sizes) - {self.data.image_size}:
            raise ValueError("data.train_sizes needs model.head=compact: the paper's head is built for one size")
        if self.augment.crop_padding >= self.data.image_size:
            raise ValueError(
                f"augment.crop_padding ({self.augment.crop_padding}) must be less than data.image_size ({self.data.image_size})"
            )
        if self.augment.scale_jitter is not None and self.augment.scale_jitter[0] < self.data.image_size:
            raise ValueError(f"augment.scale_jitter starts below data.image_size ({self.data.image_size})")
        if self.network == "A-LRN" and self.model.batch_norm:
            raise ValueError("network=A-LRN has its own normalisation; set model.batch_norm=false")
        if self.stop.patience is not None and self.data.validation == 0:
            raise ValueError("stop.patience needs a validation split; set data.validation above 0")
        if self.evaluate.checkpoint == "best" and self.data.validation == 0:
            raise ValueError("evaluate.checkpoint=best needs a validation split; set data.validation above 0")
        if self.batch % self.accumulation:
            raise ValueError(
                f"batch ({self.batch}) does not divide into accumulation ({self.accumulation}) micro-batches"
            )

        if self.recompute != "none" and self.compile is not False:
            raise ValueError(
                "recompute works with compile=false alone: torch.compile chooses what to compute again itself"
            )
        if self.recompute != "none" and self.model.sync_batch_norm:
            raise ValueError("recompute would send model.sync_batch_norm's messages twice; use one of them")
        _check_communication(self)
        if self.engine == "deepspeed":
            _check_deepspeed(self)

    def local_batch(self, world_size: int) -> int:
        """Images that each rank takes of the global batch.

        Raises:
            UserError: the ranks, or the micro-batches in a rank's share, do not divide the batch.
        """
        if self.batch % world_size:
            lower = max(self.batch // world_size, 1) * world_size
            raise UserError(
                f"batch={self.batch} does not divide over {world_size} ranks; use batch={lower} or batch={lower + world_size}"
            )
        share = self.batch // world_size
        if share % self.accumulation:
            raise UserError(
                f"a rank's share of {share} images does not divide into accumulation={self.accumulation} parts"
            )
        if self.augment.mixes and (share // self.accumulation) % 2:
            raise UserError(
                f"augment.mixup and augment.cutmix mix pairs; {share // self.accumulation} images at a time are no whole "
                "pairs: choose a batch so that each rank's micro-batch is even"
            )
        return share


def _check_communication(config: Config) -> None:
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
    if communication.static_graph and (config.accumulation > 1 or config.fit_memory):
        raise ValueError(
            "communication.static_graph needs every backward pass to be alike; set accumulation=1 and fit_memory=false"
        )
    if communication.split_head != "none":
        _check_split_head(config)


def _check_deepspeed(config: Config) -> None:
    """What the deepspeed engine cannot do.

    Raises:
        ValueError: naming the key.
    """
    for name, default in msgspec.structs.asdict(CommunicationConfig()).items():
        if getattr(config.communication, name) != default:
            raise ValueError(
                f"communication.{name} works with engine=ddp alone; DeepSpeed's own keys go into the file deepspeed.config"
            )
    if config.compile is not False:
        raise ValueError("compile works with engine=ddp alone; set compile=false")
    if config.optimizer.implementation == "apex":
        raise ValueError("optimizer.implementation=apex works with engine=ddp alone; leave it out")
    if config.optimizer.name in ("lars", "lamb") and config.deepspeed.stage:
        raise ValueError(
            f"optimizer.name={config.optimizer.name} needs whole layers, which ZeRO cuts: set deepspeed.stage=0 or engine=ddp"
        )


def _check_split_head(config: Config) -> None:
    if config.model.head != "paper":
        raise ValueError("communication.split_head splits the paper's head; set model.head=paper")
    for key, clash in (
        ("ema", config.ema > 0),
        ("compile", config.compile),
        ("precision=fp16", config.precision == "fp16"),
        ("optimizer.clip_norm", config.optimizer.clip_norm is not None),
        (f"optimizer.name={config.optimizer.name}", config.optimizer.name in ("lars", "lamb")),
    ):
        if clash:
            raise ValueError(
                f"communication.split_head leaves a rank a part of the head; {key} needs the whole: leave out one"
            )
