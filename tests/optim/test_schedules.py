"""The schedules against torch's own, and against the shapes that their papers describe."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from vgg_ddp.config.optimizer import ScheduleConfig
from vgg_ddp.optim import plateau, schedules

steps = st.integers(1, 200)
steps_per_epoch = st.integers(1, 30)
shares = st.floats(0, 1)


def factors(config: ScheduleConfig, epoch: int, total: int) -> list[float]:
    schedule = schedules.build(config, epoch, total)
    return [schedule(step, ()) for step in range(total)]


def torch_factors(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], total: int) -> list[float]:
    """The learning rates of `total` steps under one of torch's schedulers, with a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@given(total=steps, epoch=steps_per_epoch)
def test_constant_is_one(total: int, epoch: int) -> None:
    assert factors(ScheduleConfig(name="constant"), epoch, total) == [1.0] * total


@given(total=steps, epoch=steps_per_epoch, final=shares)
def test_cosine_is_torch_s(total: int, epoch: int, final: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total, eta_min=final), total)
    found = factors(ScheduleConfig(name="cosine", final=final), epoch, total)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(total=st.integers(2, 200), epoch=steps_per_epoch, first=st.floats(1e-8, 0.5))
def test_exponential_is_torch_s_and_ends_at_the_peak(total: int, epoch: int, first: float) -> None:
    gamma = first ** (-1 / (total - 1))
    expected = torch_factors(lambda o: lr_scheduler.ExponentialLR(o, gamma), total)
    found = factors(ScheduleConfig(name="exponential", first=first), epoch, total)
    assert found == pytest.approx([first * factor for factor in expected], rel=1e-9)
    assert found[-1] == 1.0


@given(
    total=steps,
    epoch=steps_per_epoch,
    milestones=st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True).map(sorted),
    gamma=st.floats(0.01, 2),
)
def test_step_is_torch_s(total: int, epoch: int, milestones: list[int], gamma: float) -> None:
    config = ScheduleConfig(name="step", milestones=[float(m) for m in milestones], gamma=gamma)
    at = [milestone * epoch for milestone in milestones]
    expected = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, at, gamma), total)
    assert factors(config, epoch, total) == pytest.approx(expected, rel=1e-9)


@given(epoch=steps_per_epoch, warmup_epochs=st.integers(0, 5))
def test_warm_up_is_torch_s(epoch: int, warmup_epochs: int) -> None:
    """Linear, and without a first step of zero, which would be lost."""
    warmup = warmup_epochs * epoch
    total = warmup + 10
    config = ScheduleConfig(name="constant", warmup_epochs=warmup_epochs)
    expected = torch_factors(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / (warmup + 1), total_iters=warmup), total
    )
    if warmup:
        assert factors(config, epoch, total) == pytest.approx(expected, rel=1e-9)
    else:
        assert factors(config, epoch, total) == [1.0] * total


@given(
    name=st.sampled_from(list(schedules.SCHEDULES)),
    total=steps,
    epoch=steps_per_epoch,
    warmup=st.floats(0, 5),
    final=shares,
)
def test_warm_up_multiplies_the_schedule(name: str, total: int, epoch: int, warmup: float, final: float) -> None:
    common = {"name": name, "final": final, "milestones": [1.0, 2.0]}
    bare = factors(ScheduleConfig(**common), epoch, total)  # type: ignore[arg-type]
    ramp = factors(ScheduleConfig(name="constant", warmup_epochs=warmup), epoch, total)
    both = factors(ScheduleConfig(**common, warmup_epochs=warmup), epoch, total)  # type: ignore[arg-type]
    assert both == pytest.approx([b * r for b, r in zip(bare, ramp)], rel=1e-12)


@given(total=steps, epoch=steps_per_epoch, peak_at=st.floats(0.01, 0.99), final=shares)
def test_one_cycle_is_a_triangle(total: int, epoch: int, peak_at: float, final: float) -> None:
    """Smith & Topin 2018, figure 1: straight up to the peak, straight down to the end; here to within a step's rise."""
    found = factors(ScheduleConfig(name="one_cycle", peak_at=peak_at, final=final), epoch, total)
    assert all(0 < factor <= 1 for factor in found)
    for step, factor in enumerate(found):
        share = step / total
        if share < peak_at:
            assert factor == pytest.approx(share / peak_at, abs=1.000001 / (peak_at * total))
        else:
            assert factor == pytest.approx(1 - (1 - final) * (share - peak_at) / (1 - peak_at), abs=1e-9)


def test_one_cycle_rises_then_falls_and_would_reach_its_end_at_the_step_after_the_last() -> None:
    schedule = schedules.build(ScheduleConfig(name="one_cycle", peak_at=0.2, final=0.05), 10, 100)
    found = [schedule(step, ()) for step in range(101)]
    peak = found.index(max(found))
    assert max(found) == 1.0
    assert peak in (19, 20)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[100] == pytest.approx(0.05)


@given(total=steps, epoch=steps_per_epoch, final=shares)
def test_one_cycle_without_a_rise_is_torch_s_straight_line(total: int, epoch: int, final: float) -> None:
    def line(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LinearLR(optimizer, 1.0, final, total)

    found = factors(ScheduleConfig(name="one_cycle", peak_at=0.0, final=final), epoch, total)
    assert found == pytest.approx(torch_factors(line, total), abs=1e-9)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_is_a_pure_function_of_the_step(name: str) -> None:
    schedule = schedules.build(ScheduleConfig(name=name, milestones=[2.0], warmup_epochs=1.5), 7, 40)  # type: ignore[arg-type]
    forwards = [schedule(step, ()) for step in range(40)]
    assert [schedule(step, ()) for step in reversed(range(40))] == forwards[::-1]


def test_the_plateau_steps_as_the_paper_says() -> None:
    """Section 3.1: divided by ten when the validation accuracy stops improving, three times; then the training stops."""
    config = ScheduleConfig(name="plateau", patience=2)
    rising, flat = [0.1, 0.2, 0.3], [0.3, 0.29]
    accuracies = [*rising, *flat, 0.35, *flat, 0.36, 0.36, 0.36, 0.37, 0.36, 0.37]
    schedule = schedules.build(config, 4, 100)
    found = [schedule(4 * epoch, accuracies[:epoch]) for epoch in range(len(accuracies) + 1)]
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 3 + [0.001] * 4)
    ended = [epoch for epoch in range(len(accuracies) + 1) if plateau.has_ended(config, accuracies[:epoch])]
    assert ended == [len(accuracies)]
    news = {epoch: plateau.news(config, accuracies[:epoch]) for epoch in range(1, len(accuracies) + 1)}
    assert [epoch for epoch, text in news.items() if text] == [5, 8, 11, 14]
    assert news[5] == "; no better for 2 validations: the learning rate is multiplied by 0.1"
    assert news[14].endswith("the training ends")


@given(
    accuracies=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75, 1.0]), max_size=30),
    patience=st.integers(1, 4),
    gamma=st.floats(0.1, 0.9),
    min_delta=st.sampled_from([0.0, 0.125, 0.25]),
)
def test_the_plateau_is_torch_s(accuracies: list[float], patience: int, gamma: float, min_delta: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", gamma, patience - 1, threshold=min_delta, threshold_mode="abs", eps=0
    )
    config = ScheduleConfig(name="plateau", patience=patience, gamma=gamma, min_delta=min_delta, reductions=100)
    schedule = schedules.build(config, 1, 100)
    for number, accuracy in enumerate(accuracies, start=1):
        theirs.step(accuracy)
        assert schedule(number, accuracies[:number]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
