"""Muon against the SVD, torch's own Muon for matrices, and torch's SGD for all that are not convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.support.rank_processes import CPU
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.distributed.world import joined
from vgg_ddp.engines import Engine
from vgg_ddp.model import initialize, vgg
from vgg_ddp.optim import optimizers
from vgg_ddp.optim.muon import in_bf16, newton_schulz, orthogonalised

MUON = OptimizerConfig(
    name="muon", learning_rate=0.05, weight_decay=0.02, momentum=0.8, muon_rate=0.3, muon_momentum=0.7, bias_rate=4.0
)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_iteration_is_its_polynomial_of_the_singular_values() -> None:
    matrices = torch.stack([drawn(5, 8), drawn(5, 3, seed=1) @ drawn(3, 8, seed=2)])  # the second has two that are zero
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert values[0].min() > 0.6 and values[0].max() < 1.3
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(newton_schulz(matrices), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(newton_schulz(matrices.float()), expected.float(), rtol=1e-3, atol=1e-3)
    assert not newton_schulz(torch.zeros(1, 4, 4)).any()
    whole = matrices[:1] / matrices[0].norm()  # bf16 takes rounding for singular values that are zero
    torch.testing.assert_close(in_bf16(whole, 5).double(), expected[:1], rtol=0, atol=0.1)  # as on a GPU


def test_kernels_of_any_shape_layout_and_neighbours_are_made_orthogonal_alike() -> None:
    """Alone or with others of its shape, tall or wide, and whatever the memory layout."""
    kernels = [drawn(8, 4, 3, 3), drawn(8, 4, 3, 3, seed=1), drawn(20, 2, 3, 3, seed=2), drawn(6, 9, 1, 1, seed=3)]
    found = orthogonalised([kernel.to(memory_format=torch.channels_last) for kernel in kernels])
    for kernel, polar in zip(kernels, found, strict=True):
        matrix = kernel.flatten(1)
        wide = len(matrix) <= matrix.shape[1]
        expected = newton_schulz((matrix if wide else matrix.T)[None])[0]
        torch.testing.assert_close(polar.flatten(1), expected if wide else expected.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_convolutions_take_the_steps_of_torch_s_muon(decay: float) -> None:
    """On the weights as matrices. Torch's iterates in bf16; with more outputs than inputs its rate would be larger."""
    config = OptimizerConfig(name="muon", weight_decay=decay, muon_rate=0.1, muon_momentum=0.9, muon_fixed_norm=False)
    ours = nn.Parameter(drawn(6, 4, 3, 3, dtype=torch.float32).to(memory_format=torch.channels_last))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    optimizer = optimizers.build({"features.0.weight": ours}, config)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=decay, momentum=0.9, nesterov=True)
    for step in range(4):
        gradient = drawn(6, 4, 3, 3, seed=10 + step, dtype=torch.float32)
        optimizers.set_learning_rate(optimizer, config.learning_rate)
        ours.grad, theirs.grad = gradient, gradient.flatten(1)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=0.02)
    assert (ours - drawn(6, 4, 3, 3, dtype=torch.float32)).abs().max() > 0.1


@pytest.mark.parametrize("nesterov", [True, False])
def test_everything_else_takes_the_steps_of_torch_s_sgd(nesterov: bool) -> None:
    config = OptimizerConfig(**{**_values(MUON), "nesterov": nesterov})
    ours = {
        name: nn.Parameter(drawn(*shape))
        for name, shape in (("features.1.weight", [4]), ("classifier.0.weight", [3, 4]))
    }
    ours["features.1.bias"] = nn.Parameter(drawn(4, seed=1))
    theirs = copy.deepcopy(ours)
    rates = {"features.1.weight": (1, 0), "classifier.0.weight": (1, 0.02), "features.1.bias": (4, 0)}
    groups = [{"params": [theirs[n]], "lr": 0.05 * r, "weight_decay": d} for n, (r, d) in rates.items()]
    reference = torch.optim.SGD(groups, momentum=0.8, nesterov=nesterov)
    optimizer = optimizers.build(ours, config)
    for step in range(4):
        optimizers.set_learning_rate(optimizer, 0.05)
        for number, name in enumerate(ours):
            ours[name].grad = drawn(*ours[name].shape, seed=100 * step + number)
            theirs[name].grad = drawn(*ours[name].shape, seed=100 * step + number)
        optimizer.step()
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name])


def _values(config: OptimizerConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def test_weights_of_a_fixed_norm_take_a_step_from_it() -> None:
    """The norm is the square root of the outputs, so a step of rate 0.3 moves each filter by 0.3 of its own."""
    parameter = nn.Parameter(5 * drawn(6, 4, 3, 3))
    before = parameter.detach() * 6**0.5 / parameter.detach().norm()
    optimizer = optimizers.build({"features.0.weight": parameter}, MUON)
    optimizers.set_learning_rate(optimizer, 0.5 * MUON.learning_rate)
    parameter.grad = drawn(6, 4, 3, 3, seed=1)
    optimizer.step()
    (step,) = orthogonalised([parameter.grad])
    torch.testing.assert_close(parameter.detach(), before - 0.15 * step)


@pytest.mark.seconds
def test_it_goes_on_from_a_checkpoint_with_the_same_bits() -> None:
    config = Config(network="vgg11", batch=4, precision="fp32", threads=1, optimizer=MUON, device="cpu")
    with joined(devices=CPU) as world:
        made = []
        for _ in range(2):
            network = vgg("A", True, "compact", 10, 16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            initialize(network, "kaiming", 0)
            made.append(engines.build(config, network, world))
        first, second = made
        _take_step(first)
        tensors, values = first.state()
        assert {key.rpartition("/")[2] for key in tensors} == {"momentum_buffer"}
        assert len(tensors) == len([p for p in network.parameters() if p.requires_grad])
        second.load_weights(first.weights())
        second.load_state({key: tensor.clone() for key, tensor in tensors.items()}, values)
        for engine in made:
            _take_step(engine)
        assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in first.weights().items())


def _take_step(engine: Engine) -> None:
    optimizers.set_learning_rate(engine.optimizer, MUON.learning_rate)
    loss, _ = engine.forward(drawn(4, 3, 16, 16, dtype=torch.float32), torch.arange(4), last=True)
    engine.backward(loss)
    engine.step()
