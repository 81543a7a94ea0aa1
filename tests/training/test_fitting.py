"""fit_memory: the largest micro-batch that fits, found without trying one that does not; the global batch stays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.support.rank_processes import apart
from vgg_ddp.config import Config, dump
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.optimizer import LossConfig, OptimizerConfig
from vgg_ddp.distributed import memory
from vgg_ddp.distributed.devices import device_names
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.training.fitting import _Step, _tries, fitted
from vgg_ddp.training.parts import build_network

pytestmark = pytest.mark.processes

GIBIBYTE = 2**30
CONFIG = Config(network="vgg11", batch=96, fit_memory=True, data=DataConfig(image_size=32), precision="fp32")


class Affine:
    """A step with known memory use; it must never be asked for a size far too large."""

    def __init__(self, base: int, an_image: int) -> None:
        self.base, self.an_image, self.tried = base, an_image, list[int]()

    def peak_bytes(self, images: int) -> int:
        self.tried.append(images)
        return self.base + images * self.an_image


@pytest.mark.parametrize("limit", [0, 90, 100, 101, 150, 180, 199, 260, 420, 10**6])
def test_the_largest_that_fits_is_found_and_tried(limit: int) -> None:
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]
    step = Affine(100, 10)
    found, peaks = _tries(step, sizes, limit)  # type: ignore[arg-type]
    fits = [size for size in sizes if 100 + 10 * size <= limit]
    assert found == max(fits, default=0)
    assert set(peaks) <= {str(size) for size in step.tried}
    assert found == 0 or found in step.tried
    assert all(images <= max(8, 2 * max(fits, default=1)) for images in step.tried)


def fit(config: Config, run: Path, room: float) -> tuple[Config, dict[str, Any]]:
    """With `room` bytes available, in a separate process: one that has used more before would still hold it."""
    return apart(fit_here, config, run, room)


def fit_here(config: Config, run: Path, room: float) -> tuple[Config, dict[str, Any]]:
    torch.set_num_threads(1)
    config = msgspec.structs.replace(config, memory_share=room / memory.available_bytes(ALONE))
    return fitted(config, partial(build_network, config, 10, ALONE.device), RunDirectory(run), ALONE)


def test_little_memory_makes_more_micro_batches_and_a_continued_run_keeps_them(tmp_path: Path) -> None:
    enough, found = fit(CONFIG, tmp_path, 2 * GIBIBYTE)
    assert (enough.accumulation, enough.batch) == (1, 96)
    peaks = {int(images): size for images, size in found["bytes"].items()}
    assert peaks[96] > peaks[8]
    used = found["limit_bytes"] - 2 * GIBIBYTE
    less, _ = fit(CONFIG, tmp_path, (peaks[48] + peaks[96]) / 2 - used)
    assert less.accumulation in (2, 3, 4)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write(run, msgspec.structs.replace(less, accumulation=8), 1, HERE)
    assert fit(CONFIG, run.path, GIBIBYTE)[0].accumulation == 8
    assert (
        fit(msgspec.structs.replace(CONFIG, batch=12), run.path, GIBIBYTE)[0].accumulation == 1
    )  # 12 is not a multiple of 8


def write(run: RunDirectory, config: Config, ranks: int, devices: list[str]) -> None:
    """Write what a run on `ranks` ranks leaves."""
    run.config.write_text(dump(config))
    run.write_json(run.environment, {"world_size": ranks, "devices": devices})


HERE = device_names(ALONE.device)
FITTED = msgspec.structs.replace(CONFIG, batch=12, accumulation=4)


@pytest.mark.parametrize(
    ("before", "ranks", "devices", "words"),
    [
        (FITTED, 4, HERE, {}),  # with a quarter of the local batch
        (FITTED, 1, ["another"], {}),  # with a different amount of memory
        (msgspec.structs.replace(FITTED, fit_memory=False), 1, HERE, {}),  # and memory was not enough
        (FITTED, 1, HERE, {"augment": AugmentConfig(mixup=0.2)}),  # 3 images cannot be paired
        (FITTED, 1, HERE, {"accumulation": 6}),  # more are asked for
    ],
    ids=["other ranks", "another device", "not fitted", "pairs", "more asked for"],
)
def test_a_continued_run_is_fitted_again_where_its_number_is_none_for_it(
    before: Config, ranks: int, devices: list[str], words: dict[str, Any], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    write(run, before, ranks, devices)
    config, found = fit(msgspec.structs.replace(FITTED, **{"accumulation": 1, **words}), run.path, 2 * GIBIBYTE)
    assert config.accumulation == found["chosen"] == words.get("accumulation", 1)


def test_no_micro_batch_is_tried_of_which_batch_norm_has_no_variance(tmp_path: Path) -> None:
    small = msgspec.structs.replace(CONFIG, batch=4, data=DataConfig(image_size=16))
    with pytest.raises(UserError, match=r"a step of 2 images needs more than"):
        fit(small, tmp_path, 1.0)


def test_mixing_keeps_its_pairs(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, batch=6, augment=AugmentConfig(mixup=0.2), data=DataConfig(image_size=64))
    assert fit(config, tmp_path, 0.5 * GIBIBYTE)[0].accumulation in (1, 3)


def test_nothing_fits_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a step of 1 images needs more than .* recompute=stages"):
        fit(CONFIG, tmp_path, 1.0)


def test_what_a_second_gradient_keeps_is_counted() -> None:
    """The original weights, and the images of all micro-batches."""
    sharp = msgspec.structs.replace(CONFIG, optimizer=OptimizerConfig(sharpness_radius=0.05))
    network = build_network(CONFIG, 10, ALONE.device)
    weights = sum(parameter.numel() for parameter in network.parameters())
    plain, twice = (_Step(config, network, 48, ALONE)._beside for config in (CONFIG, sharp))
    assert (plain, twice) == (0, 4 * (weights + 96 * 3 * 32**2))


def test_a_step_on_the_hardest_images_takes_what_these_take_and_a_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = msgspec.structs.replace(CONFIG, loss=LossConfig(hardest=0.3))
    step = _Step(config, build_network(CONFIG, 10, ALONE.device), 48, ALONE)
    seen, forward = [], step._engine.forward

    def noted(images: torch.Tensor, labels: torch.Tensor, last: bool) -> Any:
        seen.append((len(images), torch.is_grad_enabled()))
        return forward(images, labels, last)

    monkeypatch.setattr(step._engine, "forward", noted)
    step.peak_bytes(10)
    assert seen == [(10, False), (3, True)] * 2
