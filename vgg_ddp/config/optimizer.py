"""The keys of what makes a step: optimizer, learning-rate schedule and loss."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vgg_ddp.config.group import Group, key


class OptimizerConfig(Group, frozen=True):
    """The update rule and its settings."""

    name: Annotated[
        Literal["sgd", "adam", "adamw", "lars", "lamb", "muon"],
        key(
            "the optimizer; lars and lamb scale each layer's step, for large batches; muon: orthogonal steps of the "
            "convolutions, sgd for the rest"
        ),
    ] = "sgd"
    implementation: Annotated[
        Literal["auto", "torch", "apex"],
        key("auto: NVIDIA apex's FusedSGD and FusedLAMB on a GPU where that apex is compiled, else torch's fused ones"),
    ] = "auto"
    learning_rate: Annotated[float, key("peak learning rate (sgd 0.1, adam 0.001, lars 2, lamb 0.01)", gt=0)] = 0.1
    rate_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        key("global batch that learning_rate is meant for; another batch scales it in proportion; null: not scaled"),
    ] = None
    features_rate: Annotated[
        float,
        key("the convolutions' learning rate, as a share of the head's; 0 freezes them and their batch norms", ge=0),
    ] = 1.0
    bias_rate: Annotated[
        float,
        key("learning rate of the batch norms' biases, and of convolutions', as a multiple of the others'", gt=0),
    ] = 1.0
    momentum: Annotated[float, key("sgd, lars, muon (other than convolutions): momentum", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, key("sgd, muon: Nesterov momentum")] = True
    muon_rate: Annotated[
        float, key("muon: the convolutions' peak learning rate, whatever the batch; others use learning_rate", gt=0)
    ] = 0.24
    muon_momentum: Annotated[float, key("muon: the convolutions' momentum", ge=0, lt=1)] = 0.6
    muon_fixed_norm: Annotated[
        bool, key("muon: keep each convolution's weights at the norm sqrt(outputs), for a batch norm behind it")
    ] = True
    beta1: Annotated[float, key("adam, adamw, lamb: decay of the gradient's mean", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, key("adam, adamw, lamb: decay of the squared gradient's mean", ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, key("adam, adamw, lamb, lars: added to divisors", gt=0)] = 1e-8
    trust_coefficient: Annotated[float, key("lars: step length at rate 1, as a share of a layer's norm", gt=0)] = 0.001
    weight_decay: Annotated[
        float,
        key(
            "weight decay: added to the gradient (sgd, adam, lars), or decoupled from it (adamw, lamb, and muon's "
            "convolutions, where muon_fixed_norm switches it off)",
            ge=0,
        ),
    ] = 5e-4
    decay_biases_and_norms: Annotated[bool, key("decay biases and normalisation weights too")] = False
    sharpness_radius: Annotated[
        float,
        key(
            "sharpness-aware minimisation (SAM): each step uses the gradient at weights moved this far along a first "
            "gradient, at twice the compute (0.05 to 0.2); 0 is off",
            ge=0,
        ),
    ] = 0.0
    clip_norm: Annotated[
        Annotated[float, Meta(gt=0)] | None, key("clip the global gradient norm to this; null is off")
    ] = None

    def __post_init__(self) -> None:
        if self.name in ("sgd", "muon") and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0; set optimizer.nesterov=false")
        if self.implementation == "apex" and self.name not in ("sgd", "lamb"):
            raise ValueError(f"optimizer.implementation=apex has sgd and lamb, not {self.name}; use torch")


class ScheduleConfig(Group, frozen=True):
    """The learning rate over the training, as a factor of `optimizer.learning_rate`."""

    name: Annotated[
        Literal["constant", "step", "cosine", "one_cycle", "exponential", "plateau"],
        key(
            "learning-rate schedule after the warm-up; plateau: the paper's, lowered as the validation accuracy stalls; "
            "exponential: rises all the time, to find a learning rate (vgg-ddp study --learning-rate)"
        ),
    ] = "cosine"
    warmup_epochs: Annotated[float, key("linear warm-up from zero, epochs", ge=0)] = 0.0
    milestones: Annotated[list[float], key("step: epochs at which the learning rate is multiplied by gamma")] = (
        msgspec.field(default_factory=list)
    )
    gamma: Annotated[float, key("step, plateau: factor at each milestone or plateau", gt=0)] = 0.1
    peak_at: Annotated[
        float,
        key(
            "one_cycle: share of training at which the learning rate peaks; 0: it falls from the first step", ge=0, lt=1
        ),
    ] = 0.25
    final: Annotated[float, key("cosine, one_cycle: share of the peak left at the end", ge=0, le=1)] = 0.0
    first: Annotated[float, key("exponential: share of the peak at the first step", gt=0, lt=1)] = 1e-6
    patience: Annotated[int, key("plateau: validations without a better accuracy after which the rate falls", ge=1)] = 5
    min_delta: Annotated[float, key("plateau: gain in validation accuracy that counts as better", ge=0, le=1)] = 0.0
    reductions: Annotated[int, key("plateau: times that the rate falls; the next plateau ends the training", ge=0)] = 3

    def __post_init__(self) -> None:
        if self.name == "step" and not self.milestones:
            raise ValueError("schedule.name=step needs schedule.milestones, e.g. schedule.milestones='[60, 80]'")
        if self.milestones != sorted(self.milestones):
            raise ValueError("schedule.milestones must rise")


class LossConfig(Group, frozen=True):
    """The training loss: cross entropy."""

    label_smoothing: Annotated[float, key("label smoothing of the training loss", ge=0, lt=1)] = 0.0
    class_weights: Annotated[
        list[Annotated[float, Meta(ge=0)]] | Literal["balanced"] | None,
        key("weight of each class in the loss; balanced: each class counts the same, however few its images; null: 1"),
    ] = None
    hardest: Annotated[
        float,
        key(
            "train only on this share of each micro-batch, the images with the largest loss in a first forward pass; "
            "training loss and accuracy are logged for these images; 1 is off",
            gt=0,
            le=1,
        ),
    ] = 1.0
    hardest_size: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        key("side of the images in that forward pass, where they are larger, pixels; null: as they are trained on"),
    ] = None
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        key(
            "what to do if a loss or gradient is not finite; stop: end the training; skip: leave the step out on all "
            "ranks, and count it"
        ),
    ] = "stop"
    implementation: Annotated[
        Literal["auto", "torch", "apex"],
        key("auto: NVIDIA apex's fused cross entropy on a GPU where that apex is compiled, else torch's"),
    ] = "auto"

    def trained_on(self, images: int) -> int:
        """How many images of a micro-batch are trained on: the share `hardest`, rounded up."""
        return math.ceil(self.hardest * images)

    def __post_init__(self) -> None:
        if self.hardest_size is not None and self.hardest == 1:
            raise ValueError("loss.hardest_size is for choosing the hardest images: set loss.hardest below 1, e.g. 0.5")
        if self.implementation == "apex" and self.class_weights is not None:
            raise ValueError("loss.implementation=apex has no loss.class_weights; use torch")
