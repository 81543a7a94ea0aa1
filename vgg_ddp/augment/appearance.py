"""How images look, changed for a whole batch on its device: colours, holes, mixtures.

These work on the network's input of any loader, so they are the same whatever the loader. Pixels are float, 0 to 255,
[n, 3, size, size]; parameters follow from (seed, epoch, position).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.data.order import Slice
from vgg_ddp.randomness import random_words, uniform

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # NTSC


@dataclass(frozen=True)
class Appearance:
    """What is done to the look of each image: colour jitter, colour shift, cutout, then mixing, in this order.

    Attributes:
        config: the strengths.
        seed: seed of the random numbers.
        covariance: of the training set's red, green and blue, 3 x 3, in units of 0 to 255 squared.
        mean: of the training set's channels, which fills what is cut out.
        classes: how many classes there are.
    """

    config: AugmentConfig
    seed: int
    covariance: NDArray[np.float64]
    mean: NDArray[np.float64]
    classes: int

    def __call__(self, pixels: Tensor, labels: Tensor, part: Slice) -> tuple[Tensor, Tensor]:
        """The changed pixels, and their targets: labels as they are, or float [n, classes] where images are mixed."""
        config = self.config
        if config.brightness or config.contrast or config.saturation or config.hue:
            pixels = self._jitter_colours(pixels, part)
        if config.colour_shift:
            pixels = pixels + _on(pixels, self._colour_shifts(part))[:, :, None, None]
        if config.cutout:
            pixels = self._cut_out(pixels, part)
        if config.mixup or config.cutmix:
            return self._mix(pixels, labels, part)
        return pixels, labels

    def _jitter_colours(self, pixels: Tensor, part: Slice) -> Tensor:
        """Brightness, contrast, saturation and hue as torchvision's ColorJitter names them, in this order, clipped at the end.

        All four are linear in the pixels: one 3 x 3 matrix and one offset an image. Hue turns about the grey axis of YIQ.
        """
        words = 2 * self._uniform("colour jitter", part) - 1
        config, count = self.config, len(pixels)
        bright, contrast, saturation = (
            1 + strength * words[:, i]
            for i, strength in enumerate((config.brightness, config.contrast, config.saturation))
        )
        turn = 2 * math.pi * config.hue * words[:, 3]
        to_yiq, luma = np.array(RGB_TO_YIQ), np.array(LUMA)
        turned = np.zeros((count, 3, 3))
        turned[:, 0, 0] = 1
        turned[:, 1, 1] = turned[:, 2, 2] = np.cos(turn)
        turned[:, 1, 2], turned[:, 2, 1] = -np.sin(turn), np.sin(turn)
        hue = np.linalg.inv(to_yiq) @ turned @ to_yiq
        grey = np.broadcast_to(luma, (3, 3))
        saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * grey
        linear = hue @ saturate * (bright * contrast)[:, None, None]
        mean_grey = torch.einsum("nchw,c->n", pixels, _on(pixels, luma)) / pixels[0, 0].numel()
        offset = mean_grey * _on(pixels, bright * (1 - contrast))
        changed = torch.einsum("ndc,nchw->ndhw", _on(pixels, linear), pixels)
        return (changed + offset[:, None, None, None]).clamp(0, 255)

    def _colour_shifts(self, part: Slice) -> NDArray[np.float64]:
        """Krizhevsky et al., "ImageNet classification with deep CNNs" (2012), section 4.1: the shift of each image, [n, 3].

        Along each principal component of the training set's colours by its standard deviation times a normal number.
        """
        words = self._uniform("colour shift", part)
        radius = np.sqrt(-2 * np.log1p(-words[:, :2]))  # Box and Muller (1958): two words, two normal numbers
        normal = np.concatenate(
            [radius * np.cos(2 * math.pi * words[:, 2:]), radius * np.sin(2 * math.pi * words[:, 2:])], axis=1
        )
        variances, components = np.linalg.eigh(self.covariance)
        components = components * np.where(components[0] < 0, -1, 1)  # an eigenvector's sign is anyone's choice
        amounts = self.config.colour_shift * normal[:, :3] * np.sqrt(np.maximum(variances, 0))
        return amounts @ components.T

    def _cut_out(self, pixels: Tensor, part: Slice) -> Tensor:
        """DeVries & Taylor, "Improved regularization of CNNs with cutout" (2017): a square about a random pixel."""
        size = pixels.shape[-1]
        centre = (self._uniform("cutout", part)[:, :2] * size).astype(np.int64)
        low = centre - self.config.cutout // 2
        hole = _boxes(low, low + self.config.cutout, size)
        fill = _on(pixels, self.mean)[None, :, None, None]
        return torch.where(_on(pixels, hole)[:, None], fill, pixels)

    def _mix(self, pixels: Tensor, labels: Tensor, part: Slice) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al., ICLR 2018) or cutmix (Yun et al., ICCV 2019) of neighbours in the order.

        The order is random, so the image next to one is a random image; and as a pair lies on one rank, the mixture does
        not depend on how many there are. Where both are asked for, each pair tosses a coin.
        """
        assert part.start % 2 == 0 and len(part.samples) % 2 == 0, "a pair is cut in two"
        pairs = Slice(part.epoch, part.start // 2, part.samples[::2])
        words = self._uniform("mix", pairs)
        config, size = self.config, pixels.shape[-1]
        cut = words[:, 0] < 0.5 if config.mixup and config.cutmix else np.full(len(words), bool(config.cutmix))
        share = np.where(cut, _beta(words[:, 1], config.cutmix), _beta(words[:, 1], config.mixup))
        side = np.sqrt(1 - share) * size
        centre = words[:, 2:] * size
        low, high = (np.clip(centre + sign * side[:, None] / 2, 0, size).astype(np.int64) for sign in (-1, 1))
        box = _boxes(low, high, size) & cut[:, None, None]
        share = np.where(cut, 1 - box.mean(axis=(1, 2)), share)  # of what was really cut
        own = np.where(cut[:, None, None], ~box, share[:, None, None]).repeat(2, axis=0)
        weight, part_of = _on(pixels, own)[:, None], _on(pixels, share.repeat(2))[:, None]
        targets = torch.nn.functional.one_hot(labels, self.classes).to(pixels.dtype)
        mixed = weight * pixels + (1 - weight) * _swap(pixels)
        return mixed, part_of * targets + (1 - part_of) * _swap(targets)

    def _uniform(self, purpose: str, part: Slice) -> NDArray[np.float64]:
        return uniform(random_words(self.seed, part.epoch, purpose, part.start, part.stop))


def _swap(values: Tensor) -> Tensor:
    """Each pair of neighbours exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _beta(share: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Uniform numbers to numbers distributed as Beta(alpha, alpha), by its inverse; ones where alpha is 0."""
    if not alpha:
        return np.ones_like(share)
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, share))


def _boxes(low: NDArray[np.int64], high: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Where the boxes [low, high) lie, bool[n, size, size]."""
    steps = np.arange(size)
    inside = (steps >= low[:, :, None]) & (steps < high[:, :, None])
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def _on(like: Tensor, values: NDArray[np.float64] | NDArray[np.bool_]) -> Tensor:
    """As a tensor beside `like`, of its type where they are numbers."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor if values.dtype == np.bool_ else tensor.to(like.dtype)
    return tensor.to(like.device, non_blocking=True)
