"""Augmentation: its pixels held against NumPy, Pillow and torchvision, its parameters against themselves cut otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import functional as torchvision

from tests.pictures import noise, smooth
from vgg_ddp.config.schema import AugmentConfig
from vgg_ddp.data.augment import Parameters, centred, crop, crop_offsets, draw, resize, resized_shapes, rotate
from vgg_ddp.data.order import Slice

EVERYTHING = AugmentConfig(crop_padding=4, flip=True, rotation=15.0)


def part(start: int, stop: int, epoch: int = 2) -> Slice:
    return Slice(epoch, start, np.arange(start, stop))


def fields(parameters: Parameters) -> list[np.ndarray]:
    return [parameters.crop_y, parameters.crop_x, parameters.flip, parameters.angle]


# Parameters


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 10), st.integers(0, 10))
def test_parameters_belong_to_positions_however_the_batch_is_cut(seed: int, start: int, left: int, right: int) -> None:
    middle, stop = start + left, start + left + right
    whole = fields(draw(EVERYTHING, seed, part(start, stop)))
    first = fields(draw(EVERYTHING, seed, part(start, middle)))
    second = fields(draw(EVERYTHING, seed, part(middle, stop)))
    for entire, *halves in zip(whole, first, second, strict=True):
        assert_array_equal(entire, np.concatenate(halves))


def test_parameters_do_not_depend_on_which_samples_lie_at_the_positions() -> None:
    these, others = (Slice(2, 10, samples) for samples in (np.arange(5), np.array([9, 9, 0, 7, 1])))
    for left, right in zip(fields(draw(EVERYTHING, 1, these)), fields(draw(EVERYTHING, 1, others)), strict=True):
        assert_array_equal(left, right)


def test_parameters_differ_between_seeds_and_epochs() -> None:
    drawn = [draw(EVERYTHING, s, part(0, 50, e)) for s, e in ((0, 0), (0, 1), (1, 0))]
    for column in range(3):
        assert len({fields(parameters)[column].tobytes() for parameters in drawn}) == 3


def test_an_augmentation_that_is_added_leaves_the_others_as_they_were() -> None:
    plain, full = draw(AugmentConfig(), 5, part(0, 100)), draw(EVERYTHING, 5, part(0, 100))
    assert_array_equal(plain.crop_y, full.crop_y)
    assert_array_equal(plain.crop_x, full.crop_x)
    assert not plain.flip.any()
    assert not plain.angle.any()
    assert_array_equal(draw(AugmentConfig(flip=True), 5, part(0, 100)).flip, full.flip)


def test_flips_are_fair_and_angles_uniform_up_to_the_limit() -> None:
    drawn = draw(EVERYTHING, 0, part(0, 10_000))
    assert stats.binomtest(int(drawn.flip.sum()), 10_000).pvalue > 0.01
    assert np.abs(drawn.angle).max() <= 15
    assert stats.kstest(drawn.angle, stats.uniform(-15, 30).cdf).pvalue > 0.01


def test_crop_flip_and_rotation_are_independent() -> None:
    drawn = draw(EVERYTHING, 0, part(0, 10_000))
    halves = [drawn.crop_y < 0.5, drawn.crop_x < 0.5, drawn.flip, drawn.angle < 0]
    for one, other in itertools.combinations(halves, 2):
        table = [[(one & other).sum(), (one & ~other).sum()], [(~one & other).sum(), (~one & ~other).sum()]]
        assert stats.chi2_contingency(table).pvalue > 0.01


@pytest.mark.parametrize(("height", "width", "padding"), [(32, 32, 0), (32, 32, 4), (36, 33, 0), (40, 35, 2)])
def test_every_offset_is_in_range_and_equally_likely(height: int, width: int, padding: int) -> None:
    count, room = 8000, np.array([height, width]) + 2 * padding - 32
    shapes = np.broadcast_to(np.array([height, width]), (count, 2))
    offsets = crop_offsets(draw(EVERYTHING, 0, part(0, count)), shapes, 32, padding)
    for axis in range(2):
        values, counts = np.unique(offsets[:, axis], return_counts=True)
        assert_array_equal(values, np.arange(room[axis] + 1))
        assert len(counts) == 1 or stats.chisquare(counts).pvalue > 0.01


def test_the_largest_share_is_the_last_offset() -> None:
    last = np.full(1, 1 - 2.0**-53)
    for room in range(300):
        parameters = Parameters(last, last, np.zeros(1, dtype=bool), np.zeros(1))
        assert crop_offsets(parameters, np.array([[room + 32, room + 32]]), 32, 0).tolist() == [[room, room]]


# Pixels


@given(
    st.integers(0, 2**32 - 1), st.integers(8, 20), st.integers(8, 20), st.integers(0, 7), st.integers(1, 8), st.data()
)
def test_a_crop_is_numpys_reflection_sliced_and_mirrored(
    seed: int, height: int, width: int, padding: int, size: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    offsets = np.stack(
        [generator.integers(0, side + 2 * padding - size + 1, 3) for side in (height, width)], axis=1, dtype=np.int64
    )
    flip = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)], mode="reflect")
    got = crop(images, offsets, flip, size, padding)
    for i, (y, x) in enumerate(offsets):
        window = padded[i, y : y + size, x : x + size]
        assert_array_equal(got[i], window[:, ::-1] if flip[i] else window)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 32), (36, 50), (64, 48)])
def test_the_centre_crop_is_torchvisions_where_the_room_is_even(height: int, width: int) -> None:
    images = np.stack([noise(height, width, seed) for seed in range(4)])
    offsets = crop_offsets(centred(part(0, 4)), np.array([[height, width]] * 4), 32, 0)
    got = crop(images, offsets, centred(part(0, 4)).flip, 32, 0)
    expected = torchvision.center_crop(torch.from_numpy(images).permute(0, 3, 1, 2), [32, 32])
    assert_array_equal(got, expected.permute(0, 2, 3, 1).numpy())


def test_a_crop_of_the_whole_image_is_the_image_and_its_flip_is_mirrored() -> None:
    images, nowhere = np.stack([noise(16, 16, seed) for seed in range(2)]), np.zeros((2, 2), dtype=np.int64)
    got = crop(images, nowhere, np.array([False, True]), 16, 0)
    assert_array_equal(got, np.stack([images[0], np.fliplr(images[1])]))


@given(st.lists(st.tuples(st.integers(8, 200), st.integers(8, 200)), min_size=1, max_size=5), st.integers(8, 64))
def test_resized_shapes_are_torchvisions(shapes: list[tuple[int, int]], shorter: int) -> None:
    expected = [list(torchvision.resize(torch.zeros(1, *shape), [shorter]).shape[1:]) for shape in shapes]
    assert resized_shapes(np.array(shapes), shorter).tolist() == expected
    assert_array_equal(resized_shapes(np.array(shapes), None), np.array(shapes))


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (64, 33)])
def test_a_rotation_by_zero_is_the_image_and_by_right_angles_numpys(shape: tuple[int, int]) -> None:
    image = noise(*shape, seed=1)
    assert_array_equal(rotate(image, 0.0), image)
    assert_array_equal(rotate(image, 180.0), np.rot90(image, 2))
    square = noise(shape[0], shape[0], seed=2)
    assert_array_equal(rotate(square, 90.0), np.rot90(square))
    assert_array_equal(rotate(square, -90.0), np.rot90(square, -1))


@pytest.mark.parametrize("angle", [-170.0, -15.0, 3.5, 15.0, 45.0])
def test_a_rotation_is_pillows_counter_clockwise_and_black_outside(angle: float) -> None:
    image = smooth(48, 40, seed=3)
    got = rotate(image, angle).astype(int)
    expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)).astype(int)
    inside, outside = _turned(48 - 4, 40 - 4, angle), ~_turned(48 + 4, 40 + 4, angle)
    assert got.shape == image.shape
    assert np.abs(got - expected)[inside].max() <= 1  # at the edge itself Pillow blends with the background otherwise
    assert not got[outside].any()
    assert inside.sum() > 500
    assert outside.any() or abs(angle) < 5


def _turned(height: int, width: int, angle: float) -> NDArray[np.bool_]:
    """Where in 48 x 40 pixels a turned rectangle about their centre lies."""
    canvas = Image.new("L", (100, 100))
    canvas.paste(255, ((100 - width) // 2, (100 - height) // 2, (100 + width) // 2, (100 + height) // 2))
    return np.asarray(canvas.rotate(angle))[26:74, 30:70] > 0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 57), (96, 80), (7, 9)])
@pytest.mark.parametrize("kind", [noise, smooth])
def test_a_resize_is_pillows_antialiased_bilinear(
    height: int, width: int, kind: Callable[[int, int, int], NDArray[np.uint8]]
) -> None:
    image = kind(48, 40, 4)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    difference = np.abs(resize(image, height, width).astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.3  # of noise, worst of the four: 0.21; of smooth pictures: 0.11


def test_pixels_are_left_as_they_were() -> None:
    image = noise(32, 32, seed=5)
    before = image.copy()
    rotate(image, 10.0)
    resize(image, 20, 20)
    crop(image[None], np.zeros((1, 2), dtype=np.int64), np.ones(1, dtype=bool), 16, 2)
    assert_array_equal(image, before)


def test_pixels_that_may_not_be_written_to_are_taken_without_a_warning() -> None:
    """Pillow's and memory-mapped pixels are read-only; torch warns of such, once a process unless told otherwise."""
    image = noise(32, 32, seed=6)
    image.setflags(write=False)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        rotate(image, 10.0)
        resize(image, 20, 20)
    finally:
        torch.set_warn_always(always)
