"""The keys of the network."""

from __future__ import annotations

from typing import Annotated, Literal

from vgg_ddp.config.group import Group, key


class ModelConfig(Group, frozen=True):
    """The network beyond its configuration of table 1: head, normalisation, initial weights."""

    batch_norm: Annotated[bool, key("batch normalisation after every convolution")] = True
    head: Annotated[
        Literal["compact", "paper"],
        key("compact: global max pool and one linear layer; paper: two layers of 4096 with dropout"),
    ] = "compact"
    initialization: Annotated[
        Literal["kaiming", "glorot", "paper"],
        key("initial weights: Kaiming's, Glorot's, or the paper's normal of variance 0.01"),
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
    fused: Annotated[bool, key("on a GPU, without a compiler: batch norm, 2x2 pool and ReLU as one kernel")] = True

    def __post_init__(self) -> None:
        if self.sync_batch_norm and not self.batch_norm:
            raise ValueError("model.sync_batch_norm needs model.batch_norm=true")
        if self.initialize_layers != "all" and self.initialize_from is None:
            raise ValueError(f"model.initialize_layers={self.initialize_layers} needs model.initialize_from")
