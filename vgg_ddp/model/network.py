"""The VGG networks: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015.

Parameter names are torchvision's (`features.N`, `classifier.N`), so its state dicts load as they are.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.model.activation_checkpointing import Checkpointing, checkpointed
from vgg_ddp.model.convolution import Convolution

# Table 1 of the paper: a number is a 3x3 convolution with that many channels, (channels, 1) a 1x1 convolution, "M" a
# 2x2 max pool, "LRN" local response normalisation.
CONFIGURATIONS: dict[str, list[int | str | tuple[int, int]]] = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, (256, 1), "M", 512, 512, (512, 1), "M", 512, 512, (512, 1), "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"],
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
) -> VGG:
    """A VGG network with its initial weights unset (see `initialize`).

    Args:
        configuration: a column of the paper's table 1 ("A", "A-LRN", "B", "C", "D", "E"), or "vgg11", "vgg13", "vgg16",
            "vgg19" for A, B, D, E.
        batch_norm: batch normalisation between each convolution and its ReLU.
        head: "paper": two layers of 4096 with dropout; "compact": global max pool in place of the fifth pool, then one
            linear layer.
        num_classes: outputs.
        image_size: side of the input in pixels. The paper's head is built for it (32 or more); the compact head takes any
            size from 16 up.
        dropout: dropout probability in the paper's head.
        convolution: the class of its convolutions, e.g. `CpuConvolution`; they differ in speed alone.

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
    return VGG(configuration, batch_norm, head, num_classes, image_size, dropout, convolution)


class GlobalMaxPool2d(nn.Module):
    """`nn.AdaptiveMaxPool2d(1)` by the plain pool, which has a deterministic backward and channels-last kernels on GPUs."""

    def forward(self, images: Tensor) -> Tensor:
        """Float [n, channels, height, width] to [n, channels, 1, 1]."""
        return functional.max_pool2d(images, images.shape[2:])


class VGG(nn.Module):
    """Images, float [n, 3, height, width], to logits, [n, num_classes].

    Attributes:
        checkpointing: which activations the backward pass computes again in place of keeping them.
        frozen: whether the convolutions stay as they are (see `freeze_features`).
    """

    checkpointing: Checkpointing = "none"
    frozen = False

    def __init__(
        self,
        configuration: str,
        batch_norm: bool,
        head: str,
        num_classes: int,
        image_size: int,
        dropout: float,
        convolution: type[Convolution],
    ) -> None:
        super().__init__()
        self.features = _features(configuration, batch_norm, convolution)
        if head == "compact":
            # The fifth pool and the global pool are one: at 32 pixels both are the same 2x2 maximum.
            assert isinstance(self.features[-2], nn.MaxPool2d)
            self.features[-2] = GlobalMaxPool2d()
            self.classifier = nn.Sequential(nn.Linear(512, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Linear(512 * (image_size // 32) ** 2, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, num_classes),
            )

        self.features.register_load_state_dict_post_hook(_move_biases_into_running_means)

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


@torch.no_grad()
def _move_biases_into_running_means(features: nn.Module, keys: object) -> None:
    """Loaded biases that no convolution adds, since a batch norm subtracts them again: (x + b) - mean = x - (mean - b)."""
    for layer, following in itertools.pairwise(features.children()):
        if isinstance(layer, Convolution) and not layer.adds_bias and isinstance(following, nn.BatchNorm2d):
            assert following.running_mean is not None and layer.bias is not None
            following.running_mean -= layer.bias
            layer.bias.zero_()


def _features(configuration: str, batch_norm: bool, convolution: type[Convolution]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for entry in CONFIGURATIONS[configuration]:
        if entry == "M":
            if isinstance(layers[-1], nn.ReLU):
                # Maximum and ReLU commute: the same outputs and gradients, with a quarter of the values to rectify.
                layers[-1:] = [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
            else:
                layers.append(nn.MaxPool2d(2))
        elif entry == "LRN":
            # Krizhevsky et al. 2012, section 3.3: k=2, n=5, alpha=1e-4, beta=0.75; torch divides alpha by n, they do not.
            layers.append(nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0))
        else:
            width, kernel = entry if isinstance(entry, tuple) else (int(entry), 3)
            layers.append(convolution(channels, width, kernel, adds_bias=not batch_norm))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
    return nn.Sequential(*layers)
