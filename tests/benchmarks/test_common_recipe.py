"""The common recipe that others are compared with: its networks, its cost, and that it learns."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common_recipe
from benchmarks.airbench import Images
from benchmarks.scaling_model.network import layers, training_flops


def test_the_cost_of_an_image() -> None:
    """VGG-16's from its layers; ResNet-18's from 0.56 billion multiply-adds, and twice as many in the backward pass."""
    vgg = training_flops(layers("vgg16", True, "compact", 10, 32)) / 1e15
    assert common_recipe.pflop_of_image("vgg16", 10) == pytest.approx(vgg, rel=1e-3)
    assert common_recipe.pflop_of_image("resnet18", 10) == pytest.approx(3 * 2 * 0.5557e-6, rel=0.01)


@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_small_images_reach_the_last_layer_with_the_side_that_they_should(network: str) -> None:
    with torch.device("meta"):
        assert common_recipe.network_of(network, 7)(torch.empty(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.seconds
def test_it_learns_and_ends_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common_recipe, "BATCH", 16)
    monkeypatch.setattr(common_recipe, "HELD_OUT", 20)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(116) % 2
    pixels = torch.randn(116, 3, 32, 32, generator=generator)
    pixels[:, 0] += (labels * 4.0 - 2)[:, None, None]
    recipe = common_recipe.Recipe("resnet18", 3, "fp32", 0, 15)
    rows = list(common_recipe.train(Images(pixels, labels), 2, recipe))
    assert [row["steps"] for row in rows] == [6, 12, 15]
    assert rows[-1]["epoch"] == 2.5
    assert rows[-1]["accuracy"] > 0.9
    assert rows[0]["seconds"] < rows[1]["seconds"] < rows[2]["seconds"]


@pytest.mark.parametrize(("steps", "rate"), [(8, 3.0), (1, 1.0)])
def test_the_first_steps_are_not_in_the_images_per_second(
    steps: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that advances a second per reading: at the start, after the warm-up, at the end."""
    monkeypatch.setattr(common_recipe, "time", SimpleNamespace(perf_counter=itertools.count(0.0).__next__))
    for name, value in {"BATCH": 1, "HELD_OUT": 2, "network_of": network, "pflop_of_image": lambda *_: 0.0}.items():
        monkeypatch.setattr(common_recipe, name, value)
    images = Images(torch.zeros(12, 3, 32, 32), torch.zeros(12, dtype=torch.int64))
    (row,) = common_recipe.train(images, 2, common_recipe.Recipe("resnet18", 1, "fp32", 0, steps))
    assert (row["steps"], row["images_per_second"]) == (steps, rate)


def network(name: str, classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))
