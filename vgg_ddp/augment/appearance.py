"""Augmentation of how images look, for a whole batch on its device: colour jitter, cutout, mixup, cutmix.

It works on the batches of any loader. Parameters follow from (seed, epoch, position) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.augment.pixels import on_device
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.data.order import Slice

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

    def __call__(self, images: Tensor, labels: Tensor, piece: Slice) -> tuple[Tensor, Tensor]:
        """Change the images of a slice; where the configuration asks for nothing, only their layout changes.

        Args:
            images: uint8 [n, height, width, 3].
            labels: int64 [n].

        Returns:
            Pixels, float [n, 3, height, width] from 0 to 255, and targets: labels as they are, or float [n, classes] where
            images are mixed.
        """
        config = self.config
        pixels = images.permute(0, 3, 1, 2).float()
        if config.brightness or config.contrast or config.saturation or config.hue:
            pixels = self._jitter_colours(pixels, piece)
        if config.colour_shift:
            pixels = pixels + on_device(pixels, self._colour_shifts(piece))[:, :, None, None]
        if config.cutout:
            pixels = self._cut_out(pixels, piece)
        if config.mixup or config.cutmix:
            return self._mix(pixels, labels, piece)
        return pixels, labels

    def _jitter_colours(self, pixels: Tensor, piece: Slice) -> Tensor:
        """Brightness, contrast, saturation and hue as torchvision's ColorJitter names them, in this order, clipped at the end.

        All four are linear in the pixels: one 3 x 3 matrix and one offset an image. Hue turns about the grey axis of YIQ.
        """
        draws = 2 * piece.uniform(self.seed, "colour jitter") - 1
        config, count = self.config, len(pixels)
        bright, contrast, saturation = (
            1 + strength * draws[:, i]
            for i, strength in enumerate((config.brightness, config.contrast, config.saturation))
        )
        turn = 2 * math.pi * config.hue * draws[:, 3]
        to_yiq, luma = np.array(RGB_TO_YIQ), np.array(LUMA)
        turned = np.zeros((count, 3, 3))
        turned[:, 0, 0] = 1
        turned[:, 1, 1] = turned[:, 2, 2] = np.cos(turn)
        turned[:, 1, 2], turned[:, 2, 1] = -np.sin(turn), np.sin(turn)
        hue = np.linalg.inv(to_yiq) @ turned @ to_yiq
        grey = np.broadcast_to(luma, (3, 3))
        saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * grey
        linear = hue @ saturate * (bright * contrast)[:, None, None]
        mean_grey = torch.einsum("nchw,c->n", pixels, on_device(pixels, luma)) / pixels[0, 0].numel()
        offset = mean_grey * on_device(pixels, bright * (1 - contrast))
        changed = torch.einsum("ndc,nchw->ndhw", on_device(pixels, linear), pixels)
        return (changed + offset[:, None, None, None]).clamp(0, 255)

    def _colour_shifts(self, piece: Slice) -> NDArray[np.float64]:
        """Krizhevsky et al., "ImageNet classification with deep CNNs" (2012), section 4.1: the shift of each image, [n, 3].

        Along each principal component of the training set's colours by its standard deviation times a normal number.
        """
        draws = piece.uniform(self.seed, "colour shift")
        radius = np.sqrt(-2 * np.log1p(-draws[:, :2]))  # Box and Muller (1958): two draws, two normal numbers
        normal = np.concatenate(
            [radius * np.cos(2 * math.pi * draws[:, 2:]), radius * np.sin(2 * math.pi * draws[:, 2:])], axis=1
        )
        variances, components = np.linalg.eigh(self.covariance)
        components = components * np.where(components[0] < 0, -1, 1)  # an eigenvector's sign is anyone's choice
        amounts = self.config.colour_shift * normal[:, :3] * np.sqrt(np.maximum(variances, 0))
        return amounts @ components.T

    def _cut_out(self, pixels: Tensor, piece: Slice) -> Tensor:
        """DeVries & Taylor, "Improved regularization of CNNs with cutout" (2017): a square about a random pixel."""
        size = pixels.shape[-1]
        centre = (piece.uniform(self.seed, "cutout")[:, :2] * size).astype(np.int64)
        low = centre - self.config.cutout // 2
        hole = _boxes(low, low + self.config.cutout, size)
        fill = on_device(pixels, self.mean)[None, :, None, None]
        return torch.where(on_device(pixels, hole)[:, None], fill, pixels)

    def _mix(self, pixels: Tensor, labels: Tensor, piece: Slice) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al., ICLR 2018) or cutmix (Yun et al., ICCV 2019) of neighbours in the order.

        The order is random, so the image next to one is a random image; and as a pair lies on one rank, the mixture does
        not depend on how many there are. Where both are asked for, each pair tosses a coin.
        """
        assert piece.start % 2 == 0 and len(piece.samples) % 2 == 0, "a pair is cut in two"
        pairs = Slice(piece.epoch, piece.start // 2, piece.samples[::2])
        draws = pairs.uniform(self.seed, "mix")
        config, size = self.config, pixels.shape[-1]
        cut = draws[:, 0] < 0.5 if config.mixup and config.cutmix else np.full(len(draws), bool(config.cutmix))
        share = np.where(cut, _beta(draws[:, 1], config.cutmix), _beta(draws[:, 1], config.mixup))
        side = np.sqrt(1 - share) * size
        centre = draws[:, 2:] * size
        low, high = (np.clip(centre + sign * side[:, None] / 2, 0, size).astype(np.int64) for sign in (-1, 1))
        box = _boxes(low, high, size) & cut[:, None, None]
        share = np.where(cut, 1 - box.mean(axis=(1, 2)), share)  # of what was really cut
        own = np.where(cut[:, None, None], ~box, share[:, None, None]).repeat(2, axis=0)
        weight, target_weight = on_device(pixels, own)[:, None], on_device(pixels, share.repeat(2))[:, None]
        targets = torch.nn.functional.one_hot(labels, self.classes).to(pixels.dtype)
        mixed = weight * pixels + (1 - weight) * _swap(pixels)
        return mixed, target_weight * targets + (1 - target_weight) * _swap(targets)


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
