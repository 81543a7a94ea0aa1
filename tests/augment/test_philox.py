"""Random numbers drawn by torch: NumPy's bits, for any seed, epoch, purpose and position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pictures import smooth
from vgg_ddp import randomness
from vgg_ddp.augment import philox
from vgg_ddp.augment.geometry import Geometry
from vgg_ddp.augment.philox import DeviceSlice
from vgg_ddp.augment.pixels import crop
from vgg_ddp.data.order import Slice


def on_device(piece: Slice) -> DeviceSlice:
    epoch, position = torch.tensor(piece.epoch), torch.arange(piece.start, piece.stop)
    return DeviceSlice(epoch, position, torch.from_numpy(piece.samples))


@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**31 - 1),
    purpose=st.sampled_from(["crop", "flip", "dropout 3"]),
    start=st.integers(0, 2**40),
)
def test_the_words_are_numpy_s(seed: int, epoch: int, purpose: str, start: int) -> None:
    expected = randomness.random_words(seed, epoch, purpose, start, start + 5)
    position = torch.arange(start, start + 5)
    found = philox.random_words(seed, torch.tensor(epoch), purpose, position)
    assert np.array_equal(found.numpy().view(np.uint64), expected)
    assert np.array_equal(philox.uniform(found).numpy(), randomness.uniform(expected))


@pytest.mark.parametrize("flip", [False, True, "alternating"])
@pytest.mark.parametrize(("size", "padding"), [(32, 4), (32, 0), (24, 0), (24, 3)])
def test_crops_on_the_device_are_those_of_the_host(size: int, padding: int, flip: bool | str) -> None:
    images = torch.stack([torch.from_numpy(smooth(32, 32, i)) for i in range(40)])
    geometry = Geometry(5, size, padding=padding, flip=flip)
    piece = Slice(3, 16, np.random.default_rng(0).permutation(40)[:16])
    coins = geometry.coins(40)
    found = crop(images, on_device(piece), geometry, None if coins is None else torch.from_numpy(coins))
    placement = geometry.place(piece, np.full((16, 2), 32))
    steps = np.arange(size)
    lines = []
    for axis, own in ((0, placement.rows), (1, placement.columns)):
        lines.append(placement.box[:, axis : axis + 1].astype(np.int64) + (steps if own is None else own))
    rows, columns = lines
    if placement.flip is not None:
        columns = np.where(placement.flip[:, None], columns[:, ::-1], columns)
    expected = torch.stack([images[s][r][:, c] for s, r, c in zip(piece.samples, rows, columns, strict=True)])
    assert torch.equal(found, expected)
