"""LARS and LAMB against their papers' formulas, Adam against torch; apex is told from packages of the same name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from vgg_ddp import doctor
from vgg_ddp.config.optimizer import LossConfig, OptimizerConfig
from vgg_ddp.errors import UserError
from vgg_ddp.optim import losses, nvidia_apex, optimizers
from vgg_ddp.optim.parameter_groups import parameter_groups

STEPS = 5


def parameters() -> list[nn.Parameter]:
    """A weight, a weight of zeros, and a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (2, 2), (4,)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    values[1].zero_()
    return [nn.Parameter(value) for value in values]


def named(every: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Give the first a convolution's name, the others the head's."""
    return {f"{'classifier' if number else 'features'}.{number}.weight": p for number, p in enumerate(every)}


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters()]


def stepped(config: OptimizerConfig, rates: list[float]) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The parameters after a step with each of the rates."""
    ours = parameters()
    optimizer = optimizers.build(named(ours), config)
    for step, rate in enumerate(rates):
        optimizers.set_learning_rate(optimizer, rate)
        for parameter, gradient in zip(ours, gradients(step)):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().numpy() for parameter in ours]


RATES = [0.5, 0.4, 0.3, 0.2, 0.1]


def test_lars_is_the_paper_s() -> None:
    """Algorithm 1, with the rate inside of the velocity; biases take the plain step."""
    config = OptimizerConfig(name="lars", momentum=0.8, weight_decay=0.1, trust_coefficient=0.02, epsilon=1e-12)
    expected = [p.detach().numpy().copy() for p in parameters()]
    velocities = [np.zeros_like(w) for w in expected]
    for step, rate in enumerate(RATES):
        for i, g in enumerate(gradient.numpy() for gradient in gradients(step)):
            w, decay = expected[i], 0.1 if expected[i].ndim > 1 else 0.0
            norm = np.linalg.norm(w)
            ratio = 0.02 * norm / (np.linalg.norm(g) + decay * norm) if w.ndim > 1 and norm > 0 else 1.0
            velocities[i] = 0.8 * velocities[i] + rate * ratio * (g + decay * w)
            expected[i] = w - velocities[i]
    for found, wanted in zip(stepped(config, RATES), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_lamb_is_the_paper_s() -> None:
    """Algorithm 2, with phi the identity; biases take Adam's step."""
    config = OptimizerConfig(name="lamb", beta1=0.7, beta2=0.9, weight_decay=0.1, epsilon=1e-6)
    expected = [p.detach().numpy().copy() for p in parameters()]
    means, squares = ([np.zeros_like(w) for w in expected] for _ in range(2))
    for step, rate in enumerate(RATES):
        for i, g in enumerate(gradient.numpy() for gradient in gradients(step)):
            w, decay = expected[i], 0.1 if expected[i].ndim > 1 else 0.0
            means[i] = 0.7 * means[i] + 0.3 * g
            squares[i] = 0.9 * squares[i] + 0.1 * g * g
            r = means[i] / (1 - 0.7 ** (step + 1)) / (np.sqrt(squares[i] / (1 - 0.9 ** (step + 1))) + 1e-6)
            update = r + decay * w
            ratio = np.linalg.norm(w) / np.linalg.norm(update) if w.ndim > 1 and np.linalg.norm(w) > 0 else 1.0
            expected[i] = w - rate * ratio * update
    for found, wanted in zip(stepped(config, RATES), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torch_s_one_parameter_at_a_time(name: str) -> None:
    config = OptimizerConfig(name=name, beta1=0.7, beta2=0.9, weight_decay=0.1, epsilon=1e-6)  # type: ignore[arg-type]
    expected = parameters()
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    singles = [
        rule([p], betas=(0.7, 0.9), eps=1e-6, weight_decay=0.1 if p.ndim > 1 else 0.0, foreach=False, fused=False)
        for p in expected
    ]
    for step, rate in enumerate(RATES):
        for parameter, gradient, single in zip(expected, gradients(step), singles):
            single.param_groups[0]["lr"] = rate
            parameter.grad = gradient
            single.step()
    for found, wanted in zip(stepped(config, RATES), expected, strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", optimizers.STATE)
def test_convolutions_step_at_their_share_of_the_rate(name: str) -> None:
    """As with a separate optimizer of that rate; the head is unaffected."""
    config = OptimizerConfig(name=name, weight_decay=0.1, epsilon=1e-6)  # type: ignore[arg-type]
    found = stepped(msgspec.structs.replace(config, features_rate=0.25), RATES)
    slow, usual = stepped(config, [0.25 * rate for rate in RATES]), stepped(config, RATES)
    for got, wanted in zip(found, [slow[0], *usual[1:]], strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(slow[0], usual[0])


@pytest.mark.parametrize("name", optimizers.STATE)
def test_what_is_frozen_has_no_step_no_decay_and_no_state(name: str) -> None:
    ours = parameters()
    ours[0].requires_grad_(False)
    optimizer = optimizers.build(named(ours), OptimizerConfig(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    optimizers.set_learning_rate(optimizer, 0.5)
    for parameter, gradient in zip(ours[1:], gradients(0)[1:]):
        parameter.grad = gradient
    optimizer.step()
    assert torch.equal(ours[0], parameters()[0])
    assert not torch.equal(ours[2], parameters()[2])
    assert ours[0] not in optimizer.state


@pytest.mark.parametrize("name", optimizers.STATE)
def test_state_has_the_names_that_checkpoints_know(name: str) -> None:
    ours = parameters()
    optimizer = optimizers.build(named(ours), OptimizerConfig(name=name))  # type: ignore[arg-type]
    for parameter, gradient in zip(ours, gradients(0)):
        parameter.grad = gradient
    optimizer.step()
    assert set(optimizer.state[ours[0]]) == set(optimizers.STATE[name])


@pytest.mark.parametrize("name", optimizers.STATE)
def test_a_first_step_that_overflows_leaves_no_trace(name: str) -> None:
    """With fp16's scale it often does. Such a step does not write its state, so that must not be read either."""
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    wide = [nn.Parameter(torch.ones(512, 512)) for _ in range(2)]
    for parameter, overflows in zip(wide, (True, False)):
        unwritten = [torch.full_like(parameter, 1e6) for _ in range(8)]  # for the next allocation to reuse this memory
        del unwritten
        optimizer = optimizers.build(named([parameter]), config)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for gradient in [float("inf"), 1.0] if overflows else [1.0]:
            scaler.scale(torch.ones(1))
            parameter.grad = torch.full_like(parameter, gradient * scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    assert torch.equal(wide[0], wide[1])


def installed_apex(folder: Path, files: tuple[str, ...]) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise ImportError('not to be imported to be known')")


UNRELATED = ("apex/__init__.py", "apex/models.py")
PLAIN_APEX = ("apex/__init__.py", "apex/optimizers/__init__.py", "apex/optimizers/fused_sgd.py")
KINDS = {
    "absent": (),
    "unrelated": UNRELATED,
    "not compiled": PLAIN_APEX,
    "compiled": (*PLAIN_APEX, "amp_C.py"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_apex_is_known_by_its_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed_apex(tmp_path, KINDS[kind])
    monkeypatch.syspath_prepend(tmp_path)
    assert nvidia_apex.status() == kind
    assert not nvidia_apex.has_xentropy()
    assert optimizers.build(named(parameters()), OptimizerConfig()).__class__ is torch.optim.SGD  # this device is a CPU
    with pytest.raises(UserError, match=r"optimizer\.implementation=apex cannot be had") as refused:
        optimizers.build(named(parameters()), OptimizerConfig(implementation="apex"))
    assert ("apex needs a GPU" in str(refused.value)) == (kind == "compiled")
    with pytest.raises(UserError, match=r"set loss\.implementation=torch"):
        losses.build(LossConfig(implementation="apex"), torch.device("cpu"))
    doctor.examine()
    line = next(line for line in capsys.readouterr().out.splitlines() if "apex" in line)
    assert ("ok    NVIDIA apex" in line) == (kind == "compiled")
    assert ("APEX_CUDA_EXT=1" in line) == (kind != "compiled")


def test_apex_has_no_adam() -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape("apex has sgd and lamb, not adamw")):
        settings: dict[str, Any] = {"name": "adamw", "implementation": "apex"}
        msgspec.convert(settings, OptimizerConfig)


@pytest.mark.parametrize(
    ("keys", "same"),
    [({}, True), ({"weight_decay": 0.0}, False), ({"decay_biases_and_norms": True}, False)],
)
def test_apex_s_lamb_is_taken_only_where_it_scales_the_steps_of_the_weights_alone(
    keys: dict[str, Any], same: bool
) -> None:
    """apex scales the steps of what is decayed."""
    config = OptimizerConfig(name="lamb", **{"weight_decay": 0.1, **keys})
    groups = parameter_groups(named(parameters()), config)
    assert nvidia_apex.has_the_steps(groups, config) == same
    if not same:
        asked = msgspec.structs.replace(config, implementation="apex")
        with pytest.raises(UserError, match="apex's LAMB scales the steps of decayed parameters"):
            nvidia_apex.has_the_steps(groups, asked)
