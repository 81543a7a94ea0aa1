"""The VGG networks: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015.

Parameter names are torchvision's (`features.N`, `classifier.N`), so its state dicts load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from vgg_ddp.model.activation_checkpointing import Checkpointing, checkpointed
from vgg_ddp.model.convolution import Convolution, move_biases_into_running_means
from vgg_ddp.model.layers import GlobalMaxPool2d, Scale

# Table 1 of the paper: a number is a 3x3 convolution with that many channels, (channels, 1) a 1x1 convolution, "M" a
# 2x2 max pool, "LRN" local response normalisation. "vgg_tiny" is not the paper's, but the narrow stack of airbench94 (Jordan
# 2024, arXiv 2404.00498), with 3x3 kernels throughout.
CONFIGURATIONS: dict[str, list[int | str | tuple[int, int]]] = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, (256, 1), "M", 512, 512, (512, 1), "M", 512, 512, (512, 1), "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"],
    "vgg_tiny": [24, 64, "M", 64, 256, "M", 256, 256, "M", 256, "M"],
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
USUAL_NAMES = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def vgg(
    configuration: str = "D",
    batch_norm: bool = False,
    head: Literal["paper", "compact"] = "paper",
    num_classes: int = 1000,
    image_size: int = 224,
    dropout: float = 0.5,
    convolution: type[Convolution] = Convolution,
    activation: Literal["relu", "gelu", "silu"] = "relu",
    pool_before_norm: bool = False,
    logit_scale: float = 1.0,
) -> VGG:
    """A VGG network with its initial weights unset (see `initialize`).

    Args:
        configuration: a column of the paper's table 1 ("A", "A-LRN", "B", "C", "D", "E"), or "vgg11", "vgg13", "vgg16",
            "vgg19" for A, B, D, E; or "vgg_tiny".
        batch_norm: batch normalisation between each convolution and its ReLU.
        head: "paper": two layers of 4096 with dropout; "compact": global max pool in place of the fifth pool, then one
            linear layer.
        num_classes: outputs.
        image_size: side of the input in pixels. The paper's head is built for it (32 or more); the compact head takes any
            size from 16 up.
        dropout: dropout probability in the paper's head.
        convolution: the class of its convolutions, e.g. `CpuConvolution`; they differ in speed alone.
        activation: what follows convolutions, after the pool where there is one (with ReLU that is the same as before it).
        pool_before_norm: pool before the batch norm, not after it, as airbench94 does: a quarter of the values to normalise.
            In `features`, the batch norm and the pool swap places then.
        logit_scale: what the logits are multiplied by.

    Raises:
        ValueError: an unknown configuration or head, or an image too small.
    """
    configuration = USUAL_NAMES.get(configuration, configuration)
    if configuration not in CONFIGURATIONS:
        raise ValueError(f"unknown configuration {configuration!r}; choose one of {', '.join(CONFIGURATIONS)}")
    smallest = {"paper": 32, "compact": 16}
    if head not in smallest:
        raise ValueError(f"unknown head {head!r}; choose one of {', '.join(smallest)}")
    if image_size < smallest[head]:
        raise ValueError(f"the {head} head needs images of {smallest[head]} pixels or more, not {image_size}")
    features = _features(configuration, batch_norm, convolution, ACTIVATIONS[activation], pool_before_norm)
    return VGG(features, head, num_classes, image_size, dropout, logit_scale)


class VGG(nn.Module):
    """Images, float [n, 3, height, width], to logits, [n, num_classes].

    Attributes:
        checkpointing: which activations the backward pass computes again in place of keeping them.
        frozen: whether the convolutions stay as they are (see `freeze_features`).
    """

    checkpointing: Checkpointing = "none"
    frozen = False

    def __init__(
        self, features: nn.Sequential, head: str, num_classes: int, image_size: int, dropout: float, logit_scale: float
    ) -> None:
        super().__init__()
        self.features = features
        pools = [number for number, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        self.pools_before_last = len(pools) - 1
        width = next(layer.out_channels for layer in reversed(features) if isinstance(layer, Convolution))
        if head == "compact":
            # The last pool and the global pool are one: of the paper's at 32 pixels both are the same 2x2 maximum.
            self.features[pools[-1]] = GlobalMaxPool2d()
            self.classifier = nn.Sequential(nn.Linear(width, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Linear(width * (image_size // 2 ** len(pools)) ** 2, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, num_classes),
            )
        if logit_scale != 1:
            self.classifier.append(Scale(logit_scale))
        self.features.register_load_state_dict_post_hook(move_biases_into_running_means)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, with activation checkpointing where gradients are asked for."""
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            features = self.features(images)
        else:
            features = checkpointed(self.features, images, self.checkpointing)
        return self.classifier(features.flatten(1))

    def freeze_features(self) -> None:
        """From here on the convolutions get no gradients, and their batch norms keep their statistics."""
        self.frozen = True
        self.features.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VGG:
        """See `nn.Module.train`; frozen convolutions stay in evaluation mode."""
        super().train(mode)
        self.features.train(mode and not self.frozen)
        return self


def _features(
    configuration: str,
    batch_norm: bool,
    convolution: type[Convolution],
    activation: Callable[[], nn.Module],
    pool_before_norm: bool,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for entry in CONFIGURATIONS[configuration]:
        if entry == "M":
            # Before the activation there are a quarter of the values. Maximum and ReLU commute: the same outputs and gradients.
            behind = 0 if isinstance(layers[-1], nn.LocalResponseNorm) else 1 + (batch_norm and pool_before_norm)
            layers.insert(len(layers) - behind, nn.MaxPool2d(2))
        elif entry == "LRN":
            # Krizhevsky et al. 2012, section 3.3: k=2, n=5, alpha=1e-4, beta=0.75; torch divides alpha by n, they do not.
            layers.append(nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0))
        else:
            width, kernel = entry if isinstance(entry, tuple) else (int(entry), 3)
            layers.append(convolution(channels, width, kernel, adds_bias=not batch_norm))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(activation())
            channels = width
    return nn.Sequential(*layers)
