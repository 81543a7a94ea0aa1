"""Every key of a configuration: its type, default, unit, meaning, and the rules it must obey.

Each group is one frozen struct that checks its own keys; `rules` has the rules between groups. Larger groups lie in the
modules beside this one. `vgg-ddp train --help` is made from these structs. Nothing here imports torch,
so a wrong configuration is refused at once.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta

from vgg_ddp.config.analysis import AnalysisConfig
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.deepspeed import DeepSpeedConfig
from vgg_ddp.config.evaluate import EvaluateConfig
from vgg_ddp.config.group import Group, key
from vgg_ddp.config.model import ModelConfig
from vgg_ddp.config.optimizer import LossConfig, OptimizerConfig, ScheduleConfig
from vgg_ddp.config.rules import check_between_groups
from vgg_ddp.config.tracking import TrackingConfig
from vgg_ddp.errors import UserError

BUILT_IN_SOURCES = ("cifar10", "cifar100", "digits")


class StopConfig(Group, frozen=True):
    """Early stopping."""

    patience: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        key("stop after this many epochs without a better validation accuracy; null is off"),
    ] = None
    min_delta: Annotated[float, key("gain in validation accuracy that counts as better", ge=0, le=1)] = 0.0


class CheckpointConfig(Group, frozen=True):
    """When checkpoints are saved, and how many are kept."""

    every_steps: Annotated[
        Annotated[int, Meta(ge=1)] | None, key("save every this many steps; null: only at epoch ends")
    ] = None
    every_epochs: Annotated[
        int, key("save after every this many epochs, the last, and each that validates best so far", ge=1)
    ] = 1
    keep: Annotated[int, key("newest checkpoints to keep, beside the best", ge=1)] = 2
    on_error: Annotated[
        Literal["stop", "continue"],
        key("if a checkpoint cannot be written: end the training, or report it and go on; the last must be written"),
    ] = "stop"


class RunConfig(Group, frozen=True):
    """Where a run writes."""

    dir: Annotated[str, key("the run's directory")] = "runs/latest"


class LogConfig(Group, frozen=True):
    """How often metrics are written."""

    every_steps: Annotated[int, key("write training metrics every this many steps", ge=1)] = 10
    gradient_norm: Annotated[
        bool, key("write the norm of the last step's gradients with them, before it is clipped (engine=ddp)")
    ] = False
    answers: Annotated[
        bool,
        key("keep how each training image is answered in each epoch (RUN/answers, 4 bytes an image), for the report"),
    ] = True


class Config(Group, frozen=True):
    """A whole configuration: the keys without a group, then the groups.

    Raises:
        ValueError: two keys that do not go together, named in the message.
    """

    network: Annotated[
        Literal["A", "A-LRN", "B", "C", "D", "E", "vgg11", "vgg13", "vgg16", "vgg19", "vgg_tiny"],
        key(
            "configuration of the paper's table 1, or its usual name; vgg_tiny: a narrow stack that is not the paper's"
        ),
    ] = "vgg16"
    loader: Annotated[
        Literal["auto", "resident", "dali", "torch", "synthetic"],
        key(
            "data loader; auto: resident where images are of one size and fit, decoded, into memory; else dali where it runs"
        ),
    ] = "auto"
    batch: Annotated[int, key("global batch: images in one optimizer step over all ranks", ge=1)] = 256
    accumulation: Annotated[int, key("micro-batches that each rank cuts its local batch into", ge=1)] = 1
    fit_memory: Annotated[
        bool, key("cut the local batch into more micro-batches, by trial at start, if a step does not fit into memory")
    ] = False
    memory_share: Annotated[float, key("fit_memory may take this share of the memory that is free", gt=0, le=1)] = 0.8
    epochs: Annotated[float, key("passes over the training set; a fraction is allowed", gt=0)] = 100
    min_steps: Annotated[int, key("train at least this many steps, however small the data set", ge=0)] = 0
    min_steps_per_epoch: Annotated[
        int, key("halve batch and learning rate until an epoch has this many steps (to a batch of 16); 0 is off", ge=0)
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"],
        key("arithmetic of the step; auto: bf16 where the device multiplies it, else fp16 on GPUs that do, else fp32"),
    ] = "auto"
    channels_last: Annotated[bool, key("channels-last memory layout")] = True
    engine: Annotated[Literal["ddp", "deepspeed"], key("what runs the distributed step")] = "ddp"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], key("what ranks compute on; auto: GPUs, or the CPU where there is none")
    ] = "auto"
    nproc: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        key("ranks on this host; auto: one per GPU, or without one per NUMA node, at most one a core"),
    ] = "auto"
    ranks_per_gpu: Annotated[
        int, key("ranks that share each GPU; above 1 they exchange by gloo, slowly: to test and rehearse", ge=1)
    ] = 1
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        key("CPU threads of each rank; auto: OMP_NUM_THREADS if it is set, else the cores divided by the ranks"),
    ] = "auto"
    numa: Annotated[
        Literal["auto", "none"],
        key("auto: bind each rank to the cores next to its GPU, or a NUMA node, if that leaves it its share of cores"),
    ] = "auto"
    seed: Annotated[int, key("seed of weights, order and augmentation", ge=0, lt=2**32)] = 0
    resume: Annotated[Literal["never", "auto"], key("auto: continue a run found in run.dir; never: refuse it")] = (
        "never"
    )
    compile: Annotated[
        bool | Literal["stages", "graph", "auto"],
        key(
            "torch.compile: the network whole (true) or stage by stage (stages); auto: the quickest, measured at start; "
            "graph: no compiler, the whole step recorded as a CUDA graph (on a GPU auto tries it too)"
        ),
    ] = False
    restarts: Annotated[int, key("times in a row that all ranks start again without getting further", ge=0)] = 3
    timeout: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        key("seconds in one step, or suspended, after which a rank is hung; null: slowest step + 30, at least 60"),
    ] = None
    recompute: Annotated[
        Literal["none", "normalisation", "stages"],
        key("activations to compute again in the backward pass, not keep: saves memory, costs time, same bits"),
    ] = "none"
    determinism: Annotated[
        Literal["fast", "run"], key("run: same bits every time at one world size; fast: not promised on a GPU")
    ] = "fast"
    profile: Annotated[
        int, key("write a trace of this many steps, by torch's profiler, to RUN/profile/trace.json; 0 is off", ge=0)
    ] = 0
    ema: Annotated[float, key("decay of the averaged weights per step; 0 is off", ge=0, lt=1)] = 0.0
    lookahead: Annotated[
        int,
        key("every this many steps, update the average and train on from it; the decay rises to ema; 0 is off", ge=0),
    ] = 0
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
    analysis: AnalysisConfig = AnalysisConfig()
    run: RunConfig = RunConfig()
    log: LogConfig = LogConfig()
    tracking: TrackingConfig = TrackingConfig()

    def __post_init__(self) -> None:
        check_between_groups(self)

    def local_batch(self, world_size: int) -> int:
        """The local batch: images that each rank takes of the global batch.

        Raises:
            UserError: the batch does not divide over the ranks, the local batch into micro-batches, or these into pairs
                to mix; or batch normalisation would get a single pixel of a single image.
        """
        if self.batch % world_size:
            lower = max(self.batch // world_size, 1) * world_size
            raise UserError(
                f"batch={self.batch} does not divide over {world_size} ranks; use batch={lower} or batch={lower + world_size}"
            )
        local_batch = self.batch // world_size
        if local_batch % self.accumulation:
            raise UserError(
                f"the local batch of {local_batch} images does not divide into accumulation={self.accumulation} micro-batches"
            )
        smallest = min([self.data.image_size, *self.data.train_sizes])
        one_pixel = smallest < 32 or self.model.pool_before_norm  # whether the last batch norm gets one pixel an image
        alone = world_size == 1 or not self.model.sync_batch_norm
        trained_on = math.ceil(self.loss.hardest * (local_batch // self.accumulation))  # of each micro-batch
        if trained_on == 1 and self.model.batch_norm and one_pixel and alone:
            hardest = f" with loss.hardest={self.loss.hardest}" if self.loss.hardest < 1 else ""
            raise UserError(
                f"batch={self.batch}{hardest} is one image at a time for each of {world_size} ranks, and batch normalisation "
                "has no variance of one image below 32 pixels, or pooled: use a larger batch, data.image_size=32 without "
                "model.pool_before_norm, or model.batch_norm=false"
            )
        if self.augment.mixes and (local_batch // self.accumulation) % 2:
            raise UserError(
                f"augment.mixup and augment.cutmix mix pairs; {local_batch // self.accumulation} images at a time are no whole "
                "pairs: choose a batch so that each rank's micro-batch is even"
            )
        return local_batch
