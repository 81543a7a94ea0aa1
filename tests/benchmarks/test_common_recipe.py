"""The common recipe that others are compared with: its networks, its cost, and that it learns."""

from __future__ import annotations

import pytest
import torch

from benchmarks import common_recipe
from benchmarks.airbench import Images
from benchmarks.scaling_model.network import layers, training_flops


def test_the_cost_of_an_image() -> None:
    """VGG-16's by its layers; ResNet-18's 0.56 billion multiplications and additions, the backward pass twice as many."""
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
