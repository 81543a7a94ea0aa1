"""Changes of pictures, each of which takes away one thing that a network may rely on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

from vgg_ddp.randomness import torch_seed

PARTS = 4  # squares along each side that are shuffled
NOISE = 0.15 * 255  # standard deviation
ANGLE = 30.0  # degrees

Change = Callable[[Tensor, Tensor], Tensor]  # of pictures, uint8 [n, 3, side, side], given a colour to fill with, [3]


def _grey(images: Tensor, fill: Tensor) -> Tensor:
    return pictures.rgb_to_grayscale(images, 3)


def _other_colours(images: Tensor, fill: Tensor) -> Tensor:
    return pictures.adjust_hue(images, 0.5)


def _dark(images: Tensor, fill: Tensor) -> Tensor:
    return pictures.adjust_brightness(images, 0.4)


def _noise(images: Tensor, fill: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=_generator("noise")) * NOISE
    return (images + noise.to(images.device)).round().clamp(0, 255).to(torch.uint8)


def _blur(images: Tensor, fill: Tensor) -> Tensor:
    sigma = images.shape[-1] / 28
    return pictures.gaussian_blur(images, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])


def _shift(images: Tensor, fill: Tensor) -> Tensor:
    by = images.shape[-1] // 8
    shifted = torch.nn.functional.pad(images.float(), (by, 0, by, 0), mode="reflect")
    return shifted[..., : images.shape[-2], : images.shape[-1]].to(torch.uint8)


def _turned(images: Tensor, fill: Tensor) -> Tensor:
    return pictures.rotate(images, ANGLE, InterpolationMode.BILINEAR, fill=fill.tolist())


def _mirrored(images: Tensor, fill: Tensor) -> Tensor:
    return images.flip(3)


def _upside_down(images: Tensor, fill: Tensor) -> Tensor:
    return images.flip(2)


def _shuffled(images: Tensor, fill: Tensor) -> Tensor:
    """Squares change their places; what is left over at the right and below stays."""
    side = images.shape[-1] // PARTS
    whole = images[..., : side * PARTS, : side * PARTS]
    squares = whole.unfold(2, side, side).unfold(3, side, side).flatten(2, 3)  # [n, 3, 16, side, side]
    generator = _generator("shuffled")
    orders = torch.stack([torch.randperm(PARTS**2, generator=generator) for _ in images]).to(images.device)
    squares = squares.gather(2, orders[:, None, :, None, None].expand_as(squares))
    changed = images.clone()
    changed[..., : side * PARTS, : side * PARTS] = (
        squares.unflatten(2, (PARTS, PARTS)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    )
    return changed


def _without_middle(images: Tensor, fill: Tensor) -> Tensor:
    return torch.where(_middle(images), fill[:, None, None].to(images), images)


def _middle_alone(images: Tensor, fill: Tensor) -> Tensor:
    return torch.where(_middle(images), images, fill[:, None, None].to(images))


def _middle(images: Tensor) -> Tensor:
    """Whether a pixel is in the middle square, which has a quarter of the area, [side, side]."""
    place = torch.arange(images.shape[-1], device=images.device)
    inside = (place >= images.shape[-1] // 4) & (place < images.shape[-1] - images.shape[-1] // 4)
    return inside[:, None] & inside


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(0, 0, f"change {name}"))


CHANGES: dict[str, Change] = {
    "grey": _grey,
    "other colours": _other_colours,
    "dark": _dark,
    "noise": _noise,
    "blur": _blur,
    "shifted": _shift,
    "turned": _turned,
    "mirrored": _mirrored,
    "upside down": _upside_down,
    "shuffled": _shuffled,
    "without the middle": _without_middle,
    "the middle alone": _middle_alone,
}
