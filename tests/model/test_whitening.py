"""The whitening filters: what they do to the patches that they were measured on, and that a training keeps them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.model import ModelConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.model import initialize
from vgg_ddp.model.whitening import EPSILON, filters, patch_moments
from vgg_ddp.training import parts, whitening
from vgg_ddp.training.initial_weights import InitialWeights


@pytest.fixture(scope="module")
def smooth() -> Tensor:
    """Images with correlated neighbouring pixels and channels, [64, 3, 16, 16], of mean 0."""
    noise = torch.randn(64, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    blurred = functional.avg_pool2d(noise, 5, stride=1) * 5 + noise.mean(dim=1, keepdim=True)[:, :, 2:-2, 2:-2]
    return blurred - blurred.mean()


def test_outputs_are_uncorrelated_and_of_variance_one(smooth: Tensor) -> None:
    """On the images themselves; half of the filters are the negatives of the other half."""
    whiten = filters(patch_moments([smooth[:20], smooth[20:]]), 54, seed=0)
    outputs = functional.conv2d(smooth, whiten.view(54, 3, 3, 3)).transpose(0, 1).flatten(1).double()
    assert torch.equal(whiten[0::2], -whiten[1::2])
    products = outputs[0::2] @ outputs[0::2].T / outputs.shape[1]
    shrunk = 1 - products.diagonal()  # a variance v comes out as v / (v + EPSILON)
    assert shrunk.min() >= -1e-3 and shrunk.max() < 2 * EPSILON / torch.linalg.eigvalsh(patch_moments([smooth])).min()
    torch.testing.assert_close(products, torch.diag(products.diagonal()), rtol=0, atol=1e-4)


def test_directions_are_scikit_learn_s_principal_components(smooth: Tensor) -> None:
    """The largest first."""
    patches = functional.unfold(smooth, 3).transpose(1, 2).flatten(0, 1).double().numpy()
    reference = PCA().fit(
        np.concatenate([patches, -patches])
    )  # mirrored to have mean 0, since our moments are not centred
    found = filters(patch_moments([smooth]), 54, seed=0)[0::2].double()
    along = functional.normalize(found, dim=1).numpy() * reference.components_
    np.testing.assert_allclose(np.abs(along.sum(axis=1)), 1, atol=1e-3)


@pytest.mark.parametrize("count", [24, 54, 63, 64, 128])
def test_any_number_of_filters_begins_alike_and_whitens(count: int, smooth: Tensor) -> None:
    moments = patch_moments([smooth])
    found = filters(moments, count, seed=3)
    assert found.shape == (count, 27)
    shared = min(count, 54)
    assert torch.equal(found[:shared], filters(moments, 54, seed=4)[:shared])
    variances = torch.einsum("fi,ij,fj->f", found.double(), moments, found.double())
    torch.testing.assert_close(variances, torch.ones(count, dtype=torch.float64), rtol=0, atol=0.05)
    if count > 55:
        assert not torch.equal(found[54:], filters(moments, count, seed=4)[54:])


def test_a_training_begins_with_them_and_does_not_train_them(few_digits: Path) -> None:
    dataset = Dataset(few_digits)
    config = Config(network="vgg11", batch=8, model=ModelConfig(whiten=True), data=DataConfig(image_size=16), threads=1)
    draw = partial(initialize, method="kaiming", seed=0)
    initial = whitening.added(InitialWeights(draw, [], None), config, dataset, ALONE)
    again = whitening.added(InitialWeights(draw, [], None), config, dataset, ALONE)
    network, twin = (parts.build_network(config, 10, ALONE.device, each.set) for each in (initial, again))
    weight = network.get_parameter("features.0.weight")
    assert torch.equal(weight, twin.get_parameter("features.0.weight"))
    assert not weight.requires_grad and network.get_parameter("features.1.bias").requires_grad
    assert "whitens patches of" in initial.choices[0]
    loader = parts.evaluation_loader(config, dataset, "train", ALONE)
    everything = np.arange(len(dataset.split("train")))
    preprocess = parts.build_preprocess(config, dataset, ALONE.device)
    images = torch.cat([preprocess(batch.images) for batch in loader.stream(evaluation_slices(everything, 100))])
    largest = functional.conv2d(images, weight[:1]).square().mean()
    assert 0.7 < largest < 1.3  # over all training images; the filters were measured on some of them
    off = msgspec.structs.replace(config, model=ModelConfig())
    untouched = InitialWeights(draw, [], None)
    assert whitening.added(untouched, off, dataset, ALONE) is untouched
