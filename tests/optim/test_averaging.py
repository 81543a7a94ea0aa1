"""The averaged weights against torch's AveragedModel and TensorFlow's formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vgg_ddp.errors import UserError
from vgg_ddp.optim.averaging import Average, Lookahead, build


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


@torch.no_grad()
def train_a_little(network: nn.Module, step: int) -> None:
    """Change every parameter and buffer, as a step does."""
    generator = torch.Generator().manual_seed(step)
    network(torch.randn(8, 3, 4, 4, generator=generator))
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def floats(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


def test_average_after_the_warm_up_is_torch_s() -> None:
    """(1 + t) / (10 + t) passes a decay of 1/2 at t = 8."""
    network = small_network()
    ours = Average(lambda: network, 0.5)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    theirs.update_parameters(network)  # the first call copies
    for step in range(8, 20):
        train_a_little(network, step)
        ours.update(step)
        theirs.update_parameters(network)
    expected = floats(theirs.module)
    assert floats(ours.network).keys() == expected.keys()
    for name, value in floats(ours.network).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_decay_is_warmed_up_by_tensorflow_s_formula(decay: float) -> None:
    network = small_network()
    average = Average(lambda: network, decay)
    expected = {name: value.double() for name, value in floats(network).items()}
    for step in range(30):
        train_a_little(network, step)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = {name: d * expected[name] + (1 - d) * value.double() for name, value in floats(network).items()}
    for name, value in floats(average.network).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_averaging_leaves_the_network_alone() -> None:
    network, twin = small_network(), small_network()
    average = Average(lambda: network, 0.9)
    for step in range(5):
        train_a_little(network, step)
        train_a_little(twin, step)
        average.update(step)
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_average_goes_on_after_a_loaded_checkpoint() -> None:
    """Bit for bit: `update` must write to what `load_state_dict` filled."""
    network = small_network()
    undisturbed = Average(lambda: network, 0.9)
    for step in range(3):
        train_a_little(network, step)
        undisturbed.update(step)
    resumed_network = copy.deepcopy(network)
    resumed = Average(lambda: resumed_network, 0.9)
    resumed.network.load_state_dict(undisturbed.network.state_dict())
    for step in range(3, 6):
        for one, average in ((network, undisturbed), (resumed_network, resumed)):
            train_a_little(one, step)
            average.update(step)
    for name, value in floats(undisturbed.network).items():
        assert torch.equal(floats(resumed.network)[name], value)


def test_lookahead_is_the_loop_of_its_paper_with_airbench_s_decay() -> None:
    """Every few steps the fast weights are reset to the slow ones; in between the average stays."""
    network, twin = small_network(), small_network()
    lookahead = Lookahead(lambda: network, 0.8, every=3, total_steps=12)
    slow = {name: value.clone() for name, value in floats(twin).items()}
    for step in range(12):
        train_a_little(network, step)
        train_a_little(twin, step)
        lookahead.update(step)
        if step % 3 == 2:
            decay = 0.8 * ((step + 1) / 12) ** 3
            slow = {name: decay * slow[name] + (1 - decay) * value for name, value in floats(twin).items()}
            twin.load_state_dict(slow, strict=False)
        for name, value in floats(network).items():
            torch.testing.assert_close(value, floats(twin)[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(floats(lookahead.network)[name], slow[name], rtol=1e-5, atol=1e-6)
    assert lookahead.decay == 0.8


def test_a_training_that_looks_ahead_once_at_most_is_refused() -> None:
    assert isinstance(build(small_network, 0.9, 6, 12), Lookahead)
    with pytest.raises(UserError, match="lookahead=7 is more than half of the training, 12 steps"):
        build(small_network, 0.9, 7, 12)


def test_without_a_decay_it_is_the_network_itself() -> None:
    network = small_network()
    average = Average(lambda: network, 0.0)
    assert average.network is network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average.update(0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
