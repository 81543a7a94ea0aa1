"""The fully convolutional network against the sliding windows that it replaces."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.fully_convolutional import FullyConvolutional

SIZE = 64  # of the images that the networks are built for
Head = Literal["paper", "compact"]


@pytest.fixture(scope="module", params=["paper", "compact"])
def network(request: pytest.FixtureRequest) -> VGG:
    network = vgg("A", request.param == "compact", request.param, num_classes=7, image_size=SIZE)
    initialize(network, "kaiming", seed=1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):  # logits that differ by more than rounding
                module.weight.mul_(5).add_(0.001)
                module.bias.add_(torch.arange(len(module.bias)) / len(module.bias))
    return network.eval()


def images(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(2))


def windows(maps: Tensor, side: int, stride: int) -> list[list[Tensor]]:
    """Each square of `side` in [n, channels, height, width], row by row."""
    rows, columns = (range(0, length - side + 1, stride) for length in maps.shape[2:])
    return [[maps[:, :, top : top + side, left : left + side] for left in columns] for top in rows]


def of_windows(maps: list[list[Tensor]], answer: nn.Module) -> Tensor:
    """The answers to windows, [n, classes, rows, columns]."""
    return torch.stack([torch.stack([answer(window) for window in row], dim=-1) for row in maps], dim=-2)


@torch.no_grad()
def test_each_cell_is_the_head_slid_over_the_map_of_the_convolutions(network: VGG) -> None:
    paper = len(network.classifier) > 1
    whole = images(136, 170)  # the last 8 and 10 pixels do not fill a cell
    convolutions = network.features if paper else network.features[:-2]  # without global pool and ReLU
    head = network.classifier if paper else nn.Sequential(*network.features[-2:], nn.Flatten(), *network.classifier)
    if paper:
        head = nn.Sequential(nn.Flatten(), *head)
    expected = of_windows(windows(convolutions(whole), 2 if paper else 4, 1), head)
    found = FullyConvolutional(network, SIZE)(whole)
    assert found.shape == expected.shape == ((1, 7, 3, 4) if paper else (1, 7, 5, 7))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.seconds
@torch.no_grad()
def test_each_cell_is_the_network_slid_over_the_image_where_padding_plays_no_part(network: VGG) -> None:
    """A window cut from the image is padded with zeros where the whole image has pixels, except with 1x1 kernels."""
    paper = len(network.classifier) > 1
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for module in network.features:
        if isinstance(module, nn.Conv2d):
            centre = module.weight[:, :, 1:2, 1:2].clone()
            module.weight.zero_()[:, :, 1:2, 1:2] = 3 * centre
    whole = images(128, 160)
    expected = of_windows(windows(whole, SIZE, 32 if paper else 16), network)
    found = FullyConvolutional(network, SIZE)(whole)
    network.load_state_dict(before)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_of_the_training_s_size_has_the_logits_of_the_network(network: VGG) -> None:
    found = FullyConvolutional(network, SIZE)(images(SIZE, SIZE))
    torch.testing.assert_close(found[:, :, 0, 0], network(images(SIZE, SIZE)), rtol=1e-5, atol=1e-5)
    assert found.shape[2:] == (1, 1)


@torch.no_grad()
def test_state_dicts_of_the_two_load_into_one_another(network: VGG) -> None:
    paper = len(network.classifier) > 1
    other = vgg("A", not paper, "paper" if paper else "compact", num_classes=7, image_size=SIZE).eval()
    other.load_state_dict(FullyConvolutional(network, SIZE).state_dict())
    assert torch.equal(other(images(SIZE, SIZE)), network(images(SIZE, SIZE)))
    initialize(other, "kaiming", seed=3)
    dense = FullyConvolutional(other, SIZE)
    dense.load_state_dict(network.state_dict())
    assert torch.equal(dense(images(96, 96)), FullyConvolutional(network, SIZE)(images(96, 96)))
