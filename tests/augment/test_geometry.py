"""Placements: what follows from (seed, epoch, position), however the batch is cut, and the pixels they name."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
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

from tests.support.pictures import noise, smooth
from vgg_ddp.augment import pixels
from vgg_ddp.augment.geometry import Geometry, Placement, evaluation_geometry, resized_shapes, training_geometry
from vgg_ddp.augment.pixels import finish, resample, resample_batch, rotate, take
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.order import Slice

EVERYTHING: list[dict[str, Any]] = [
    {"crop_padding": 4, "flip": True, "rotation": 15.0},
    {"crop_padding": 2, "flip": "alternating", "scale_jitter": [32, 64]},
    {"flip": True, "random_resized_crop": [0.08, 1.0]},
]


def geometry(seed: int = 5, **keys: Any) -> Geometry:
    return training_geometry(DataConfig(), msgspec.convert(keys, AugmentConfig), seed)


def part(start: int, stop: int, epoch: int = 2) -> Slice:
    return Slice(epoch, start, np.arange(start, stop))


def placed(which: Geometry, where: Slice, height: int = 32, width: int = 32) -> Placement:
    return which.place(where, np.broadcast_to(np.array([height, width]), (len(where.samples), 2)))


def fields(placement: Placement) -> list[NDArray[Any]]:
    values = (placement.box, placement.rows, placement.columns, placement.flip, placement.angle)
    return [value for value in values if value is not None]


@pytest.mark.parametrize("keys", EVERYTHING)
@given(seed=st.integers(0, 2**32 - 1), start=st.integers(0, 10**6), left=st.integers(1, 9), right=st.integers(1, 9))
def test_placements_belong_to_positions_however_the_batch_is_cut(
    keys: dict[str, Any], seed: int, start: int, left: int, right: int
) -> None:
    middle, stop = start + left, start + left + right
    which = geometry(seed, **keys)
    whole, first, second = (
        fields(placed(which, part(*ends), 50, 41)) for ends in ((start, stop), (start, middle), (middle, stop))
    )
    for entire, *halves in zip(whole, first, second, strict=True):
        assert_array_equal(entire, np.concatenate(halves))


@pytest.mark.parametrize("keys", EVERYTHING)
def test_boxes_lie_in_the_image_and_moves_in_the_square(keys: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    shapes = generator.integers(32, 90, (2000, 2))
    placement = geometry(**keys).place(part(0, 2000), shapes)
    assert (placement.box[:, :2] >= 0).all()
    assert (placement.box[:, 2:] <= shapes + 1e-9).all()
    assert (placement.box[:, 2:] > placement.box[:, :2]).all()
    for moves in (placement.rows, placement.columns):
        if "crop_padding" in keys:
            assert moves is not None
            assert moves.min() >= 0
            assert moves.max() < 32
        else:
            assert moves is None


def test_placements_differ_between_seeds_and_epochs() -> None:
    for keys in EVERYTHING:
        drawn = [fields(placed(geometry(s, **keys), part(0, 50, e), 50, 41)) for s, e in ((0, 0), (0, 1), (1, 0))]
        for one, other in itertools.combinations(drawn, 2):
            assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_augmentation_that_is_added_leaves_the_others_as_they_were() -> None:
    plain, full = placed(geometry(crop_padding=4), part(0, 99)), placed(geometry(**EVERYTHING[0]), part(0, 99))
    assert_array_equal(plain.box, full.box)
    assert plain.rows is not None
    assert full.rows is not None
    assert_array_equal(plain.rows, full.rows)


def flips(which: Geometry, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    flip = placed(which, Slice(epoch, 0, samples)).flip
    assert flip is not None
    return flip


def test_flips_are_fair_and_angles_uniform_up_to_the_limit() -> None:
    which = geometry(**EVERYTHING[0])
    assert stats.binomtest(int(flips(which, 0, np.arange(10_000)).sum()), 10_000).pvalue > 0.01
    angle = placed(which, part(0, 10_000)).angle
    assert angle is not None
    assert np.abs(angle).max() <= 15
    assert stats.kstest(angle, stats.uniform(-15, 30).cdf).pvalue > 0.01


def test_alternating_flips_show_each_image_both_ways_in_any_two_epochs_wherever_it_stands() -> None:
    which, samples = geometry(flip="alternating"), np.arange(5000)
    first = flips(which, 0, samples)
    assert stats.binomtest(int(first.sum()), 5000).pvalue > 0.01
    assert_array_equal(flips(which, 1, samples), ~first)
    assert_array_equal(flips(which, 2, samples), first)
    shuffled = np.random.default_rng(0).permutation(5000)
    assert_array_equal(flips(which, 0, shuffled), first[shuffled])
    assert_array_equal(flips(which, 0, np.array([7, 3])), first[[7, 3]])


@pytest.mark.parametrize(("height", "width", "padding"), [(32, 32, 0), (32, 32, 4), (36, 33, 0), (40, 35, 2)])
def test_every_offset_is_in_range_and_equally_likely(height: int, width: int, padding: int) -> None:
    placement, room = placed(geometry(crop_padding=padding), part(0, 8000), height, width), (height, width)
    for axis, moves in enumerate((placement.rows, placement.columns)):
        source = placement.box[:, axis] + (0 if moves is None else moves[:, 16]) - (0 if moves is not None else -16)
        values, counts = np.unique(source, return_counts=True)  # where the crop's middle pixel comes from
        assert_array_equal(values, np.arange(16 - padding, room[axis] - 16 + padding + 1))
        assert len(counts) == 1 or stats.chisquare(counts).pvalue > 0.01


def test_scales_are_uniform_over_the_range_and_both_ends_occur() -> None:
    box = placed(geometry(scale_jitter=[32, 64]), part(0, 10_000), 64, 64).box
    shorter = np.rint(64 * 32 / (box[:, 2] - box[:, 0])).astype(int)
    values, counts = np.unique(shorter, return_counts=True)
    assert_array_equal(values, np.arange(32, 65))
    assert stats.chisquare(counts).pvalue > 0.01


def test_random_resized_crops_are_of_the_asked_areas_and_ratios() -> None:
    box = placed(geometry(random_resized_crop=[0.08, 0.5]), part(0, 10_000), 400, 400).box
    height, width = (box[:, 2:] - box[:, :2]).T
    assert_array_equal(box, np.rint(box))
    assert stats.kstest(height * width / 400**2, stats.uniform(0.08, 0.42).cdf).statistic < 0.02
    assert stats.kstest(np.log(width / height), stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).statistic < 0.02


def test_a_random_resized_crop_of_a_sliver_is_the_widest_box_in_its_middle() -> None:
    box = placed(geometry(random_resized_crop=[0.9, 1.0]), part(0, 10), 20, 200).box
    assert_array_equal(box, np.tile([0, 87, 20, 114], (10, 1)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 32), (36, 50), (64, 48)])
def test_evaluation_takes_torchvisions_centre_where_the_room_is_even(height: int, width: int) -> None:
    image = noise(height, width, 1)
    placement = placed(evaluation_geometry(DataConfig()), part(0, 1), height, width)
    assert placement.rows is None
    assert placement.flip is None
    assert placement.angle is None
    top, left, bottom, right = placement.box[0].astype(int)
    expected = torchvision.center_crop(torch.from_numpy(image).permute(2, 0, 1), [32, 32])
    assert_array_equal(image[top:bottom, left:right], expected.permute(1, 2, 0).numpy())


@given(st.lists(st.tuples(st.integers(8, 200), st.integers(8, 200)), min_size=1, max_size=5), st.integers(8, 64))
def test_resized_shapes_are_torchvisions(shapes: list[tuple[int, int]], shorter: int) -> None:
    expected = [list(torchvision.resize(torch.zeros(1, *shape), [shorter]).shape[1:]) for shape in shapes]
    assert resized_shapes(np.array(shapes), np.full(len(shapes), shorter)).tolist() == expected
    assert_array_equal(resized_shapes(np.array(shapes), None), np.array(shapes))


# Pixels


@given(
    st.integers(0, 2**32 - 1),
    st.integers(8, 20),
    st.integers(8, 20),
    st.integers(0, 7),
    st.integers(8, 20),
    st.booleans(),
)
def test_a_crop_is_numpys_reflection_sliced_and_mirrored(
    seed: int, height: int, width: int, padding: int, size: int, flip: bool
) -> None:
    size, padding = min(size, height, width), min(padding, size - 1, height - 1, width - 1)
    images = np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    which = Geometry(seed, size, padding=padding, flip=flip)
    placement = placed(which, part(10, 13), height, width)
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)], mode="reflect")
    edges = placement.box.astype(int)
    windows = np.stack([image[box[0] : box[2], box[1] : box[3]] for image, box in zip(images, edges)])
    got = finish(torch.from_numpy(windows), placement).numpy()
    offsets = which._offsets(part(10, 13), np.array([[height, width]] * 3))
    mirrored = which._flips(part(10, 13)) if flip else np.zeros(3, dtype=bool)
    for i, (y, x) in enumerate(offsets):
        window = padded[i, y : y + size, x : x + size]
        assert_array_equal(got[i], window[:, ::-1] if mirrored[i] else window)


def test_taking_pixels_is_numpys_indexing() -> None:
    generator = np.random.default_rng(0)
    images, which = generator.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8), generator.integers(0, 5, 7)
    rows, columns = generator.integers(0, 20, (7, 16)), generator.integers(0, 24, (7, 16))
    got = take(torch.from_numpy(images), which, Placement(np.zeros((7, 4)), rows, columns, None, None))
    assert_array_equal(got.numpy(), images[which[:, None, None], rows[:, :, None], columns[:, None, :]])


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (64, 33)])
def test_a_rotation_by_zero_is_the_image_and_by_right_angles_numpys(shape: tuple[int, int]) -> None:
    def turned(image: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
        return rotate(torch.from_numpy(image)[None], np.array([angle]))[0].numpy()

    image = noise(*shape, seed=1)
    assert_array_equal(turned(image, 0.0), image)
    assert_array_equal(turned(image, 180.0), np.rot90(image, 2))
    square = noise(shape[0], shape[0], seed=2)
    assert_array_equal(turned(square, 90.0), np.rot90(square))
    assert_array_equal(turned(square, -90.0), np.rot90(square, -1))


@pytest.mark.parametrize("angle", [-170.0, -15.0, 3.5, 15.0, 45.0])
def test_a_rotation_is_pillows_counter_clockwise_and_black_outside(angle: float) -> None:
    image = smooth(48, 48, seed=3)
    got = rotate(torch.from_numpy(image)[None], np.array([angle]))[0].numpy().astype(int)
    expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)).astype(int)
    inside, outside = _turned(48 - 4, angle), ~_turned(48 + 4, angle)
    assert np.abs(got - expected)[inside].max() <= 1  # Pillow blends the edge with the background differently
    assert not got[outside].any()
    assert inside.sum() > 500
    assert outside.any() or abs(angle) < 5


def _turned(side: int, angle: float) -> NDArray[np.bool_]:
    """Which of 48 x 48 pixels a rotated square about their centre covers."""
    canvas = Image.new("L", (100, 100))
    low, high = (100 - side) // 2, (100 + side) // 2
    canvas.paste(255, (low, low, high, high))
    return np.asarray(canvas.rotate(angle))[26:74, 26:74] > 0


BOXES = [
    [0, 0, 48, 40],
    [0, 0, 20, 20],
    [10.3, 4.7, 41.9, 30.1],
    [28, 20, 48, 40],
    [5, 5, 37, 37],
    [3, 4, 13, 9],
    [0, 1, 48, 40],
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [16, 32, 70])
def test_scaling_a_box_is_the_same_with_pillow_and_in_batches(box: list[float], size: int) -> None:
    images = np.stack([noise(48, 40, 4), smooth(48, 40, 5)])
    boxes = np.array([box, box], dtype=np.float64)
    batch = resample_batch(torch.from_numpy(images), np.array([1, 0]), boxes, size).numpy()
    for i, image in enumerate(images[::-1]):
        assert np.abs(batch[i].astype(int) - resample(image, boxes[i], (size, size))).max() <= 1


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_scaling_few_at_a_time_gives_the_same_bits(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.from_numpy(np.stack([noise(48, 40, seed) for seed in range(3)]))
    which, boxes = np.arange(len(BOXES)) % 3, np.array(BOXES, dtype=np.float64)
    whole, counts = resample_batch(images, which, boxes, 32), []
    monkeypatch.setattr(pixels, "AT_A_TIME", at_a_time * 4 * 48 * 40 * 3 + 1)
    real = pixels._resampled
    monkeypatch.setattr(pixels, "_resampled", lambda i, w, *rest: (counts.append(len(w)), real(i, w, *rest))[1])
    assert torch.equal(resample_batch(images, which, boxes, 32), whole)
    assert max(counts) == at_a_time
    assert sum(counts) == len(boxes)


def test_a_whole_image_scaled_is_torchvisions_but_for_its_edge() -> None:
    image = smooth(96, 96, 4)
    expected = torchvision.resize(torch.from_numpy(image).permute(2, 0, 1), [32, 32], antialias=True)
    got = resample(image, np.array([0.0, 0, 96, 96]), (32, 32)).astype(int)
    assert np.abs(got - expected.permute(1, 2, 0).numpy())[2:-2, 2:-2].max() <= 1


def test_pixels_are_left_as_they_were() -> None:
    image = torch.from_numpy(noise(32, 32, seed=5))[None]
    before = image.clone()
    placement = placed(geometry(**EVERYTHING[0]), part(0, 1))
    finish(image, placement)
    resample(image[0].numpy(), np.array([0.0, 0, 32, 32]), (20, 20))
    resample_batch(image, np.array([0]), np.array([[0.0, 0, 32, 32]]), 20)
    assert torch.equal(image, before)
