"""Augmentation of how images look, for a whole batch on its device: colour jitter, cutout, mixup, cutmix.

It works on the batches of any loader. Parameters follow from (seed, epoch, position) alone, and are computed where their
random numbers are: on the host for a `Slice`, on the device for a `DeviceSlice`, where nothing is asked of the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.augment.pixels import on_device
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.data.order import Slice

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # NTSC

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Appearance:
    """What is done to the look of each image: colour jitter, colour shift, cutout, then mixing, in this order.

    Attributes:
        config: the strengths.
        seed: seed of the random numbers.
        covariance: of the training set's red, green and blue, 3 x 3, in units of 0 to 255 squared.
        mean: of the training set's channels, which fills what is cut out.
        classes: how many classes there are.
        device: of the images.
    """

    config: AugmentConfig
    seed: int
    covariance: NDArray[np.float64]
    mean: NDArray[np.float64]
    classes: int
    device: torch.device = CPU

    def __call__(self, images: Tensor, labels: Tensor, piece: Slice | DeviceSlice) -> tuple[Tensor, Tensor]:
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
        if config.mixes and self._is_strong(piece):
            return self._mix(pixels, labels, piece)
        return pixels, labels

    def _is_strong(self, piece: Slice | DeviceSlice) -> bool | Tensor:
        """Whether cutout and mixing apply in this epoch."""
        if self.config.strong_epochs is None:
            return True
        first, end = self.config.strong_epochs
        return (piece.epoch >= first) & (piece.epoch < end)

    def _uniform(self, piece: Slice | DeviceSlice, purpose: str) -> Tensor:
        """Four numbers in [0, 1) for each image, float64 [n, 4]."""
        return torch.as_tensor(piece.uniform(self.seed, purpose))

    @cached_property
    def _constants(self) -> dict[torch.device, dict[str, Tensor]]:
        """Constants shared by all images, on the host and on the device: a CUDA graph cannot copy from the host."""
        to_yiq = np.array(RGB_TO_YIQ)
        variances, components = np.linalg.eigh(self.covariance)
        components = components * np.where(components[0] < 0, -1, 1)  # an eigenvector's sign is anyone's choice
        constants = {
            "to YIQ": to_yiq,
            "from YIQ": np.linalg.inv(to_yiq),
            "grey": np.broadcast_to(LUMA, (3, 3)),
            "identity": np.eye(3),
            "components": (components * np.sqrt(np.maximum(variances, 0))).T,
            "mean": self.mean,
        }
        tensors = {name: torch.tensor(values) for name, values in constants.items()}
        return {d: {name: v.to(d) for name, v in tensors.items()} for d in {CPU, self.device}}

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """A constant on the device of `like`, in float64."""
        return self._constants[like.device][name]

    def _jitter_colours(self, pixels: Tensor, piece: Slice | DeviceSlice) -> Tensor:
        """Brightness, contrast, saturation and hue as torchvision's ColorJitter names them, in this order, clipped at the end.

        All four are linear in the pixels: one 3 x 3 matrix and one offset an image. Hue turns about the grey axis of YIQ.
        """
        config, draws = self.config, 2 * self._uniform(piece, "colour jitter") - 1
        bright, contrast, saturation = (
            (1 + strength * draws[:, i])[:, None, None]
            for i, strength in enumerate((config.brightness, config.contrast, config.saturation))
        )
        turn = 2 * math.pi * config.hue * draws[:, 3]
        cosine, sine, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
        turned = torch.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
        hue = self._constant("from YIQ", draws) @ turned @ self._constant("to YIQ", draws)
        saturate = saturation * self._constant("identity", draws) + (1 - saturation) * self._constant("grey", draws)
        linear = hue @ saturate * (bright * contrast)
        luma = self._constant("grey", pixels)[0].to(pixels.dtype)
        mean_grey = torch.einsum("nchw,c->n", pixels, luma) / pixels[0, 0].numel()
        offset = mean_grey * on_device(pixels, (bright * (1 - contrast)).flatten())
        changed = torch.einsum("ndc,nchw->ndhw", on_device(pixels, linear), pixels)
        return (changed + offset[:, None, None, None]).clamp(0, 255)

    def _colour_shifts(self, piece: Slice | DeviceSlice) -> Tensor:
        """Krizhevsky et al., "ImageNet classification with deep CNNs" (2012), section 4.1: the shift of each image, [n, 3].

        It moves along each principal component of the set's colours by the standard deviation times a normal number.
        """
        draws = self._uniform(piece, "colour shift")
        radius = (-2 * torch.log1p(-draws[:, :2])).sqrt()  # Box and Muller (1958): two draws, two normal numbers
        angle = 2 * math.pi * draws[:, 2:]
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return self.config.colour_shift * normal[:, :3] @ self._constant("components", draws)

    def _cut_out(self, pixels: Tensor, piece: Slice | DeviceSlice) -> Tensor:
        """DeVries & Taylor, "Improved regularization of CNNs with cutout" (2017): a square about a random pixel."""
        size = pixels.shape[-1]
        low = (self._uniform(piece, "cutout")[:, :2] * size).long() - self.config.cutout // 2
        hole = on_device(pixels, _boxes(low, low + self.config.cutout, size) & self._is_strong(piece))
        fill = self._constant("mean", pixels).to(pixels.dtype)[None, :, None, None]
        return torch.where(hole[:, None], fill, pixels)

    def _mix(self, pixels: Tensor, labels: Tensor, piece: Slice | DeviceSlice) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al., ICLR 2018) or cutmix (Yun et al., ICCV 2019) of neighbours in the order.

        The order is random, so an image's neighbour is a random image; and as a pair lies on one rank, the mixture does
        not depend on the number of ranks. If both are on, each pair gets one of them, with equal probability.
        """
        assert isinstance(piece, Slice), "the shares of a mixture are computed on the host"
        assert piece.start % 2 == 0 and len(piece.samples) % 2 == 0, "a pair is cut in two"
        pairs = Slice(piece.epoch, piece.start // 2, piece.samples[::2])
        draws = pairs.uniform(self.seed, "mix")
        config, size = self.config, pixels.shape[-1]
        cut = draws[:, 0] < 0.5 if config.mixup and config.cutmix else np.full(len(draws), bool(config.cutmix))
        share = np.where(cut, _beta(draws[:, 1], config.cutmix), _beta(draws[:, 1], config.mixup))
        side = np.sqrt(1 - share) * size
        centre = draws[:, 2:] * size
        low, high = (np.clip(centre + sign * side[:, None] / 2, 0, size).astype(np.int64) for sign in (-1, 1))
        box = _boxes(torch.from_numpy(low), torch.from_numpy(high), size).numpy() & cut[:, None, None]
        share = np.where(cut, 1 - box.mean(axis=(1, 2)), share)  # from the area that was really pasted
        own = np.where(cut[:, None, None], ~box, share[:, None, None]).repeat(2, axis=0)
        weight, target_weight = on_device(pixels, own)[:, None], on_device(pixels, share.repeat(2))[:, None]
        targets = torch.nn.functional.one_hot(labels, self.classes).to(pixels.dtype)
        mixed = weight * pixels + (1 - weight) * _swap(pixels)
        return mixed, target_weight * targets + (1 - target_weight) * _swap(targets)


def _swap(values: Tensor) -> Tensor:
    """Each pair of neighbours exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _beta(share: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Map uniform numbers to Beta(alpha, alpha) by its inverse distribution function; ones where alpha is 0."""
    if not alpha:
        return np.ones_like(share)
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, share))


def _boxes(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Where the boxes from `low` up to and without `high` lie, int64 [n, 2] each; bool [n, size, size]."""
    steps = torch.arange(size, device=low.device)
    inside = (steps >= low[:, :, None]) & (steps < high[:, :, None])
    return inside[:, 0, :, None] & inside[:, 1, None, :]
