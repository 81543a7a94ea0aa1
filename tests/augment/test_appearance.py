"""Colours, holes and mixtures: held against torchvision and NumPy, and against themselves cut into ranks."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision

from tests.support.pictures import smooth
from vgg_ddp.augment.appearance import Appearance
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.data.moments import Moments
from vgg_ddp.data.order import Slice
from vgg_ddp.errors import UserError

COVARIANCE = np.array([[4000.0, 3500, 3000], [3500, 3900, 3400], [3000, 3400, 4200]])
MEAN = np.array([120.0, 115, 100])
JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1}
ALL: list[dict[str, Any]] = [
    JITTER,
    {"colour_shift": 0.1},
    {"cutout": 8},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"mixup": 1.0, "cutmix": 1.0},
]


def appearance(seed: int = 3, **keys: Any) -> Appearance:
    return Appearance(msgspec.convert(keys, AugmentConfig), seed, COVARIANCE, MEAN, classes=10)


def images(count: int, size: int = 24) -> Tensor:
    return torch.stack([torch.from_numpy(smooth(size, size, i)) for i in range(count)])


def floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()


def part(start: int, stop: int, epoch: int = 1) -> Slice:
    return Slice(epoch, start, np.arange(start, stop))


def apply(which: Appearance, count: int = 16, start: int = 0, epoch: int = 1) -> tuple[Tensor, Tensor]:
    labels = torch.arange(16)[start : start + count] % 10
    return which(images(16)[start : start + count], labels, part(start, start + count, epoch))


@pytest.mark.parametrize("keys", ALL)
def test_the_ranks_and_micro_batches_see_what_one_rank_sees(keys: dict[str, Any]) -> None:
    pixels, targets = apply(appearance(**keys))
    parts = [apply(appearance(**keys), 4, start) for start in range(0, 16, 4)]
    torch.testing.assert_close(torch.cat([p for p, _ in parts]), pixels)
    torch.testing.assert_close(torch.cat([t for _, t in parts]), targets)
    assert not torch.equal(pixels, floats(images(16)))


@pytest.mark.parametrize("keys", ALL)
def test_another_seed_or_epoch_is_another_picture(keys: dict[str, Any]) -> None:
    first = apply(appearance(**keys))[0]
    assert not torch.equal(first, apply(appearance(seed=4, **keys))[0])
    assert not torch.equal(first, apply(appearance(**keys), epoch=2)[0])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("brightness", torchvision.adjust_brightness),
        ("contrast", torchvision.adjust_contrast),
        ("saturation", torchvision.adjust_saturation),
    ],
)
def test_a_colour_jitter_is_torchvisions(key: str, change: Any) -> None:
    """One kind at a time, with the factors drawn for each image, which must lie within their bounds."""
    which = appearance(**{key: 0.4})
    got = which(images(8), torch.zeros(8, dtype=torch.int64), part(0, 8))[0]
    factors = 1 + 0.4 * (2 * part(0, 8).uniform(which.seed, "colour jitter") - 1)[:, list(JITTER).index(key)]
    assert (np.abs(factors - 1) <= 0.4).all()
    for image, result, factor in zip(floats(images(8)), got, factors, strict=True):
        expected = change(image / 255, float(factor)) * 255
        assert (result - expected).abs().max() < 0.2  # torchvision rounds the luma's weights to four places


def test_a_turn_of_hue_leaves_grey_and_luma_and_a_whole_turn_everything() -> None:
    pixels = images(4)
    grey = pixels[..., :1].expand(-1, -1, -1, 3)
    labels = torch.zeros(4, dtype=torch.int64)
    turned, _ = appearance(hue=0.5)(grey, labels, part(0, 4))
    assert (turned - floats(grey)).abs().max() < 0.1
    mild = 84 + pixels // 8  # values far from the clipping limits
    luma = torch.tensor([0.299, 0.587, 0.114])
    changed, _ = appearance(hue=0.5)(mild, labels, part(0, 4))
    assert (torch.einsum("nchw,c->nhw", changed - floats(mild), luma)).abs().max() < 0.1
    assert (changed - floats(mild)).abs().max() > 1


def test_colour_shifts_have_the_training_sets_covariance_times_the_strength_squared() -> None:
    shifts = appearance(colour_shift=0.1)._colour_shifts(part(0, 50_000))
    np.testing.assert_allclose(np.cov(shifts.T), 0.01 * COVARIANCE, rtol=0.05)
    for column in shifts.T:
        assert stats.kstest(column / column.std(), "norm").pvalue > 0.01
    pixels = images(8)
    changed, _ = appearance(colour_shift=0.1)(pixels, torch.zeros(8, dtype=torch.int64), part(0, 8))
    difference = (changed - floats(pixels)).flatten(2)
    assert difference.std(dim=2).max() < 1e-4  # all pixels of a channel shift alike
    np.testing.assert_allclose(difference.mean(dim=2).numpy(), shifts[:8], rtol=1e-3, atol=1e-3)


def test_colours_shift_along_scikit_learns_principal_components_of_the_same_pixels() -> None:
    """Of the covariance that a data set's record has, by the standard deviation along each."""
    pixels = (images(16).float() * torch.tensor([0.5, 0.8, 1.0])).to(torch.uint8).numpy()
    moments = Moments()
    moments.add(pixels)
    shift = Appearance(AugmentConfig(colour_shift=1.0), 3, np.array(moments.covariance), np.array(moments.mean), 10)
    analysis = PCA(3).fit(pixels.reshape(-1, 3))
    found = shift._constants[torch.device("cpu")]["components"].numpy()[::-1]  # scikit-learn's begin with the largest
    expected = analysis.components_ * np.sqrt(analysis.explained_variance_)[:, None]
    signs = np.sign((found * expected).sum(axis=1))[:, None]
    count = pixels.size // 3
    np.testing.assert_allclose(found, signs * expected * np.sqrt((count - 1) / count), rtol=1e-6, atol=1e-6)


def test_a_cutout_is_a_square_of_the_mean_colour() -> None:
    pixels = images(16)
    changed, _ = appearance(cutout=8)(pixels, torch.zeros(16, dtype=torch.int64), part(0, 16))
    hole = (changed != floats(pixels)).any(dim=1)
    sizes = hole.flatten(1).sum(dim=1)
    assert sizes.max() == 64
    assert sizes.min() >= 16  # at a corner a quarter of the hole is left
    for image, where in zip(changed, hole, strict=True):
        assert (image[:, where] - torch.tensor(MEAN, dtype=torch.float32)[:, None]).abs().max() < 1e-4
        rows, columns = where.any(dim=1).sum(), where.any(dim=0).sum()
        assert rows * columns == where.sum()


def test_mixup_is_a_weighted_mean_of_neighbours_and_so_are_the_targets() -> None:
    pixels, labels = images(16), torch.arange(16) % 10
    mixed, targets = appearance(mixup=1.0)(pixels, labels, part(0, 16))
    pixels = floats(pixels)
    assert targets.shape == (16, 10)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
    for i in range(16):
        share, other = targets[i, labels[i]], i ^ 1
        torch.testing.assert_close(mixed[i], share * pixels[i] + (1 - share) * pixels[other])
        torch.testing.assert_close(targets[i, labels[other]], 1 - share)


def test_cutmix_pastes_a_box_of_the_neighbour_and_the_targets_are_its_area() -> None:
    pixels, labels = images(16), torch.arange(16) % 10
    mixed, targets = appearance(cutmix=1.0)(pixels, labels, part(0, 16))
    pixels = floats(pixels)
    for i in range(16):
        own, other = (mixed[i] == pixels[i]).all(dim=0), (mixed[i] == pixels[i ^ 1]).all(dim=0)
        assert (own | other).all()
        foreign = ~own
        assert targets[i, labels[i]] == pytest.approx(1 - float(foreign.float().mean()), abs=0.01)
        assert foreign.any(dim=1).sum() * foreign.any(dim=0).sum() == foreign.sum()


@pytest.mark.parametrize("keys", [{"cutout": 8}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_strong_changes_are_those_of_their_epochs_alone(keys: dict[str, Any]) -> None:
    always, sometimes = appearance(**keys), appearance(**keys, strong_epochs=[2, 4])
    for epoch in range(6):
        expected = apply(always if epoch in (2, 3) else appearance(), epoch=epoch)
        assert all(torch.equal(*pair) for pair in zip(apply(sometimes, epoch=epoch), expected))


def test_mixing_shares_follow_the_beta_distribution() -> None:
    pixels, labels = torch.zeros(4000, 2, 2, 3, dtype=torch.uint8), torch.arange(4000) % 2
    _, targets = appearance(mixup=0.4)(pixels, labels, part(0, 4000))
    assert stats.kstest(targets[::2, 0].numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_mixing_needs_whole_pairs_on_each_rank() -> None:
    config = msgspec.convert({"batch": 6, "augment": {"mixup": 0.2}}, Config)
    assert config.local_batch(1) == 6
    with pytest.raises(UserError, match=r"3 images at a time are no whole pairs"):
        config.local_batch(2)


def test_nothing_asked_for_changes_nothing() -> None:
    pixels, labels = images(4), torch.arange(4)
    same, targets = appearance()(pixels, labels, part(0, 4))
    assert torch.equal(same, floats(pixels))
    assert targets is labels
