"""The PFLOP of a training, beside those counted by hand."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.measurement import training_cost
from benchmarks.scaling_model.network import layers, training_flops
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.optimizer import LossConfig, OptimizerConfig

pytestmark = pytest.mark.host


def test_pflop_follows_the_size_of_each_epochs_images() -> None:
    config = Config(network="vgg11", batch=100, data=DataConfig(image_size=32, train_sizes=[16]))
    small, large = (training_cost.flop_of_image(config, 10, size) for size in (16, 32))
    found = training_cost.pflop_of_steps(config, classes=10, steps_per_epoch=10)(25)
    assert found == pytest.approx((10 * 100 * small + 15 * 100 * large) / 1e15)
    counted_by_hand = {size: training_flops(layers("vgg11", True, "compact", 10, size)) for size in (16, 32)}
    assert large == pytest.approx(counted_by_hand[32], rel=1e-6)
    assert (
        0.8 * counted_by_hand[16] < small < counted_by_hand[16]
    )  # on a single pixel, products with padding are skipped


def test_flop_of_a_second_gradient_and_of_the_pass_that_finds_the_hardest_images() -> None:
    plain = Config(network="vgg11", data=DataConfig(image_size=32))
    both = training_cost.flop_of_image(plain, 10, 32)
    forward, small = (training_cost.flop_of_image(plain, 10, size, backward=False) for size in (32, 16))
    assert 0.32 * both < forward < 0.35 * both
    for changes, expected in (
        ({"optimizer": OptimizerConfig(sharpness_radius=0.1)}, 2 * both),
        ({"loss": LossConfig(hardest=0.25)}, forward + both / 4),
        ({"loss": LossConfig(hardest=0.5, hardest_size=16)}, small + both / 2),
    ):
        config = msgspec.structs.replace(plain, **changes)
        assert training_cost.flop_of_image_in_step(config, 10, 32) == pytest.approx(expected)


def test_flop_of_an_update_are_muon_s_matrix_products() -> None:
    """Per matrix: X X^T and the final product, with 17 products of square matrices of the smaller side in between."""
    shapes = [(3 * 9, 64), (64 * 9, 128), (128 * 9, 256), (256 * 9, 256), (256 * 9, 512)] + 3 * [(512 * 9, 512)]
    expected = sum(2 * (2 * min(s) ** 2 * max(s) + 17 * min(s) ** 3) for s in shapes)
    muon = Config(network="vgg11", optimizer=OptimizerConfig(name="muon"))
    assert training_cost.flop_of_update(muon, 10) == pytest.approx(expected, rel=1e-6)
    alone, two = (training_cost.pflop_of_steps(muon, 10, steps_per_epoch=10, ranks=ranks)(5) for ranks in (1, 2))
    assert two - alone == pytest.approx(5 * expected / 1e15)  # every rank computes the whole update
    assert training_cost.flop_of_update(Config(network="vgg11"), 10) == 0
