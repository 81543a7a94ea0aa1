"""The keys of the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from vgg_ddp.config.group import Group, key


class ModelConfig(Group, frozen=True):
    """The network beyond its configuration of table 1: head, normalisation, initial weights."""

    batch_norm: Annotated[bool, key("batch normalisation after every convolution")] = True
    head: Annotated[
        Literal["compact", "paper"],
        key("compact: global max pool and one linear layer; paper: two layers of 4096 with dropout"),
    ] = "compact"
    activation: Annotated[
        Literal["relu", "gelu", "silu"],
        key("activation after each convolution, or after the pool that follows it"),
    ] = "relu"
    pool_before_norm: Annotated[
        bool, key("pool before batch normalisation, which then normalises a quarter of the values")
    ] = False
    norm_scale: Annotated[
        bool, key("train the batch norms' scales; false: they stay 1, and their biases are trained")
    ] = True
    norm_momentum: Annotated[
        float, key("share of a batch in the batch norms' running statistics; short trainings want more", gt=0, le=1)
    ] = 0.1
    logit_scale: Annotated[float, key("logits are multiplied by this, as if the head's weights were smaller", gt=0)] = (
        1.0
    )
    whiten: Annotated[
        bool,
        key("freeze the first convolution at filters that whiten patches of training images, each in both signs"),
    ] = False
    initialization: Annotated[
        Literal["kaiming", "glorot", "paper", "dirac"],
        key(
            "initial weights: Kaiming's, Glorot's, the paper's normal of variance 0.01, or (dirac) Kaiming's with each "
            "convolution's first outputs set to copy its inputs"
        ),
    ] = "kaiming"
    initialize_from: Annotated[
        str | None,
        key(
            "begin with trained weights: a run, a checkpoint, or a file of torchvision's VGG weights (.pth, .safetensors)"
        ),
    ] = None
    initialize_layers: Annotated[
        Literal["all", "features", "paper"],
        key(
            "what is taken from initialize_from; all: the convolutions, and the head up to its first layer of another shape; "
            "features: the convolutions; paper: of a net A the first four convolutions and the head"
        ),
    ] = "all"
    dropout: Annotated[float, key("dropout probability in the paper's head", ge=0, lt=1)] = 0.5
    sync_batch_norm: Annotated[bool, key("normalise over the batch of all ranks; costs messages in every layer")] = (
        False
    )
    fused: Annotated[
        bool,
        key("on a GPU, without torch.compile: fuse the batch norm, 2x2 pool and ReLU of large layers"),
    ] = True

    @property
    def variant(self) -> dict[str, Any]:
        """What `vgg` takes besides configuration, head and normalisation; stored in an exported file's metadata."""
        return {name: getattr(self, name) for name in ("activation", "pool_before_norm", "logit_scale")}

    def __post_init__(self) -> None:
        if self.sync_batch_norm and not self.batch_norm:
            raise ValueError("model.sync_batch_norm needs model.batch_norm=true")
        for name, unusual in (
            ("pool_before_norm=true", self.pool_before_norm),
            ("norm_scale=false", not self.norm_scale),
            ("norm_momentum", self.norm_momentum != 0.1),
        ):
            if unusual and not self.batch_norm:
                raise ValueError(f"model.{name} needs model.batch_norm=true")
        for name, unusual in (("pool_before_norm", self.pool_before_norm), ("whiten", self.whiten)):
            if unusual and self.initialize_from is not None:
                raise ValueError(f"model.{name} does not fit the weights of model.initialize_from: leave out one")
        if self.initialize_layers != "all" and self.initialize_from is None:
            raise ValueError(f"model.initialize_layers={self.initialize_layers} needs model.initialize_from")
