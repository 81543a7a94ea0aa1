"""Filters of a first convolution that whiten patches of images: their outputs are uncorrelated, and of variance 1.

They are from Page, "How to train your ResNet" (2019, part 8: bag of tricks); airbench94 (Jordan 2024, arXiv 2404.00498,
section 3.2) takes each in both signs, since a rectifier lets one half of the values through. A VGG's first layer has kernels
of 3x3 on 3 channels: 27 directions, so 54 of 64 filters; the others are random combinations of these, in both signs too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vgg_ddp.randomness import random_words, uniform

EPSILON = 5e-4  # added to variances, as in airbench94, so that directions with almost none are not blown up


def patch_moments(batches: Iterable[Tensor], side: int = 3) -> Tensor:
    """The mean products of the values in patches of `side` x `side` pixels that lie whole in an image, float64 [k, k].

    Args:
        batches: float [n, channels, height, width]; k is channels x side x side.
    """
    total, count = torch.zeros(()), 0
    for images in batches:
        patches = functional.unfold(images, side).transpose(1, 2).flatten(0, 1)
        total = total + (patches.T @ patches).double()
        count += len(patches)
    return total / count


def filters(moments: Tensor, count: int, seed: int) -> Tensor:
    """`count` filters, those of the largest variance first, in pairs of both signs; float32 [count, k].

    Args:
        moments: see `patch_moments`, [k, k].
        seed: of the random combinations that are added where `count` is more than 2 k.
    """
    variances, directions = torch.linalg.eigh(moments)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * largest.sign()  # the sign of an eigenvector is anyone's choice
    whitening = (directions / torch.sqrt(variances + EPSILON)).T.flip(0)
    pairs = -(-count // 2)
    missing = max(0, pairs - len(whitening))
    words = random_words(seed, 0, "whitening", 0, missing * len(moments)).reshape(missing, len(moments), 4)
    mixture = torch.from_numpy(np.asarray(uniform(words)).sum(axis=2) - 2)  # about normal
    combined = functional.normalize(mixture, dim=1) @ whitening
    kept = torch.cat([whitening, combined])[:pairs]
    return torch.stack([kept, -kept], dim=1).flatten(0, 1)[:count].float()
