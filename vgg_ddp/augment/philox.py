"""The random words of `vgg_ddp.randomness`, drawn by torch on any device: the same bits, without a host number.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3). torch has no unsigned 64-bit
arithmetic; sums and products of its int64 wrap around, which gives the same bits, and `_shift` shifts zeros in.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

# The multipliers and the Weyl constants that each round adds to the key, of Random123's philox4x64.
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class DeviceSlice:
    """A `vgg_ddp.data.order.Slice` on the device.

    Attributes:
        epoch: the epoch, int64 scalar.
        position: of each sample in the epoch, int64[n].
        samples: indices into the split, int64[n].
    """

    epoch: Tensor
    position: Tensor
    samples: Tensor

    def cut(self, first: int, count: int) -> DeviceSlice:
        """`count` of its positions, beginning with position `first` of the slice."""
        rows = slice(first, first + count)
        return DeviceSlice(self.epoch, self.position[rows], self.samples[rows])

    def uniform(self, seed: int, purpose: str) -> Tensor:
        """Four numbers in [0, 1) for each of its positions, float64[n, 4]: those of `Slice.uniform`."""
        return uniform(random_words(seed, self.epoch, purpose, self.position))


def random_words(seed: int, epoch: Tensor, purpose: str, position: Tensor) -> Tensor:
    """Four random 64-bit words for each position of an epoch, int64 [n, 4]: the bits of `randomness.random_words`.

    Args:
        epoch: int64 scalar.
        position: int64 [n].
    """
    zero = torch.zeros_like(position)
    words = [position + 1, zero, zero, zero]  # NumPy increments the counter before it draws
    keys = [zero + _signed(seed), zero + ((epoch << 32) | zlib.crc32(purpose.encode()))]
    for _ in range(ROUNDS):
        high0, low0 = _product(words[0], MULTIPLIERS[0])
        high1, low1 = _product(words[2], MULTIPLIERS[1])
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [key + _signed(constant) for key, constant in zip(keys, WEYL, strict=True)]
    return torch.stack(words, dim=1)


def uniform(words: Tensor) -> Tensor:
    """Random words as float64 numbers in [0, 1), from their upper 53 bits; the shape stays."""
    return _shift(words, 11).double() * 2.0**-53


def _product(values: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 64 bits of a product, from products of halves, none of which exceeds 64 bits."""
    high, low = _shift(values, 32), values & LOW
    upper, lower = constant >> 32, constant & LOW
    first = high * lower + _shift(low * lower, 32)
    second = low * upper + (first & LOW)
    return high * upper + _shift(first, 32) + _shift(second, 32), values * _signed(constant)


def _shift(values: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """An unsigned 64-bit word as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word
