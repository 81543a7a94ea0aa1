"""Variants of the paper's VGG: another activation, the pool before the norm, scaled logits, frozen scales."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.config import Config
from vgg_ddp.errors import UserError
from vgg_ddp.export import formats
from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.convolution import Convolution
from vgg_ddp.model.fully_convolutional import FullyConvolutional
from vgg_ddp.model.network import CONFIGURATIONS
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.training.parts import build_network

VARIANT: dict[str, Any] = {"activation": "gelu", "pool_before_norm": True, "logit_scale": 0.25}
ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


def images(side: int = 32, count: int = 4) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def built(configuration: str = "A", **variant: Any) -> VGG:
    network = vgg(configuration, True, "compact", 7, 32, **variant)
    initialize(network, "kaiming", 1)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2))
        network.classifier[0].weight.mul_(5)
    return network


def by_hand(network: VGG, pixels: Tensor, activation: str, pool_before_norm: bool, scale: float) -> Tensor:
    """The same layers in the order given by the paper's table and these arguments, in training mode."""
    convolutions = iter([layer for layer in network.features if isinstance(layer, Convolution)])
    norms = iter([layer for layer in network.features if isinstance(layer, nn.BatchNorm2d)])
    entries = CONFIGURATIONS["A"]
    for entry, following in zip(entries, [*entries[1:], ""]):
        if entry == "M":
            continue
        pixels = functional.conv2d(pixels, next(convolutions).weight, padding=1)
        if following == "M" and pool_before_norm:
            pixels = functional.max_pool2d(pixels, 2)
        norm = next(norms)
        pixels = functional.batch_norm(pixels, None, None, norm.weight, norm.bias, training=True)
        if following == "M" and not pool_before_norm:
            pixels = functional.max_pool2d(pixels, 2)
        pixels = ACTIVATIONS[activation](pixels)
    return functional.linear(pixels.flatten(1), network.classifier[0].weight, network.classifier[0].bias) * scale


@pytest.mark.parametrize("pool_before_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_come_in_the_order_that_is_said(activation: Any, pool_before_norm: bool) -> None:
    network = built(activation=activation, pool_before_norm=pool_before_norm, logit_scale=0.5)
    found, expected = network(images()), by_hand(network, images(), activation, pool_before_norm, 0.5)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_defaults_are_the_network_that_there_was() -> None:
    plain, named = built(), built(activation="relu", pool_before_norm=False, logit_scale=1.0)
    assert repr(plain) == repr(named)
    assert list(vgg("A", True, "compact", 7, 32, **VARIANT).state_dict()) != list(
        plain.state_dict()
    )  # the norm comes later


@pytest.mark.parametrize("configuration", ["A", "vgg_tiny"])
@torch.no_grad()
def test_the_fully_convolutional_network_has_its_logits(configuration: str) -> None:
    network = built(configuration, **VARIANT).eval()
    found = FullyConvolutional(network, 32)(images())
    assert found.shape == (4, 7, 1, 1)
    torch.testing.assert_close(found[:, :, 0, 0], network(images()), rtol=1e-5, atol=1e-5)
    assert FullyConvolutional(network, 32)(images(64)).shape[2:] == ((3, 3) if configuration == "A" else (5, 5))


@pytest.mark.parametrize("what", ["normalisation", "stages"])
def test_activations_that_are_computed_again_are_the_same(what: Any) -> None:
    found = []
    for checkpointing in ("none", what):
        network = built(**VARIANT)
        network.checkpointing = checkpointing
        network(images()).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["safetensors", "torch-export"])
def test_a_file_that_is_exported_says_what_it_needs(name: str, tmp_path: Path) -> None:
    classifier = formats.Classifier(Preprocess([120.0] * 3, [60.0] * 3, channels_last=False), built(**VARIANT)).eval()
    texts = dict.fromkeys(("dataset", "dataset_sha256", "checkpoint_sha256", "vgg_ddp"), "")
    contents = formats.Contents(
        labels=[f"{n}" for n in range(7)],
        mean=[120.0] * 3,
        std=[60.0] * 3,
        image_size=32,
        resize=None,
        network="A",
        batch_norm=True,
        head="compact",
        variant=VARIANT,
        **texts,
    )
    pixels = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    form = formats.FORMATS[name]
    form.write(tmp_path / "model", classifier, contents)
    answers = form.answers(tmp_path / "model", contents, pixels)
    torch.testing.assert_close(answers, formats.logits(classifier, pixels), rtol=1e-4, atol=1e-5)


def configured(**keys: Any) -> Config:
    return msgspec.convert({"network": "vgg11", "batch": 8, "threads": 1, **keys}, Config)


def test_frozen_scales_stay_one_and_running_statistics_follow_their_momentum() -> None:
    network = build_network(configured(model={"norm_scale": False, "norm_momentum": 0.4}), 10, torch.device("cpu"))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = copy.deepcopy(norms[0])
    network(images()).sum().backward()
    assert all(norm.weight.grad is None and norm.bias.grad is not None for norm in norms)
    assert all((norm.weight == 1).all() for norm in norms)
    with torch.no_grad():
        mean = network.features[0](images()).mean(dim=(0, 2, 3))
    assert before.running_mean is not None and norms[0].running_mean is not None
    torch.testing.assert_close(norms[0].running_mean, 0.6 * before.running_mean + 0.4 * mean)


@torch.no_grad()
def test_dirac_passes_the_inputs_on_and_draws_the_rest_as_kaiming_does() -> None:
    network, other = built(), built()
    initialize(network, "dirac", seed=1)
    initialize(other, "kaiming", seed=1)
    for layer, drawn in zip(network.features, other.features):
        if isinstance(layer, Convolution):
            inputs = layer.in_channels
            pixels = torch.randn(1, inputs, 5, 5, generator=torch.Generator().manual_seed(3))
            torch.testing.assert_close(layer(pixels)[:, :inputs], pixels)
            assert torch.equal(layer.weight[inputs:], drawn.weight[inputs:])
    assert torch.equal(network.classifier[0].weight, other.classifier[0].weight)


def test_one_image_that_is_pooled_to_a_pixel_has_no_variance() -> None:
    configured(batch=1).local_batch(1)
    with pytest.raises(UserError, match="pool_before_norm"):
        configured(batch=1, model={"pool_before_norm": True}).local_batch(1)
