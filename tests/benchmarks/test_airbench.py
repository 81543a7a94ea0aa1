"""The airbench recipe: its whitening layer, its crops, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from benchmarks import airbench


def test_the_first_layer_whitens_patches() -> None:
    images = functional.avg_pool2d(torch.randn(500, 3, 34, 34, generator=torch.Generator().manual_seed(0)), 3, 1)
    outputs = functional.conv2d(images, airbench.whitening(images)).transpose(0, 1).flatten(1)
    half = airbench.FILTERS // 2
    assert torch.equal(outputs[:half], -outputs[half:])
    covariance = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4
    assert covariance.diagonal().min() > 0.8 and covariance.diagonal().max() <= 1  # below 1, as noise is damped


def test_crops_move_and_mirror_by_whole_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 32, 32, generator=generator)
    flip = torch.arange(40) % 2 == 1
    assert torch.equal(airbench.crops(images, 0, flip, generator)[1::2], images[1::2].flip(3))
    found = airbench.crops(images, 2, ~flip, generator)
    padded = functional.pad(torch.where(flip[:, None, None, None], images, images.flip(3)), [2] * 4, mode="reflect")
    places = [[(y, x) for y in range(5) for x in range(5) if torch.equal(ours, source[:, y : y + 32, x : x + 32])]
              for ours, source in zip(found, padded)]  # fmt: skip
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) > 10


@pytest.mark.seconds
def test_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airbench, "BATCH", 32)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    pixels = torch.randn(96, 3, 32, 32, generator=generator)
    pixels[:, 0] += (labels * 2.0 - 1)[:, None, None]
    images = airbench.Images(pixels, labels)
    network, seconds = airbench.train(images, 2, 3, 0, compiled=False)
    assert seconds > 0
    assert torch.equal(network.whitening, airbench.whitening(pixels))
    assert min(airbench.accuracies(network, images)) > 0.95
