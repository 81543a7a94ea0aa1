"""Whole trainings on the device: the same bits after a restart and as a graph, several ranks on one GPU, DeepSpeed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.rank_processes import Launch, Ranks, Train, step
from tests.support.run_folders import assert_same_steps, assert_undisturbed, latest, stop
from vgg_ddp.distributed import rank_process
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.trials import BEFORE_RECORDING
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.model import initialize, vgg

SECONDS_TO_SAY_WHY = 10


@pytest.fixture(scope="module")
def words(precision: str, device: torch.device) -> tuple[str, ...]:
    """Bitwise reproducible steps; on a GPU enough of them for a graph to be recorded and launched."""
    steps = BEFORE_RECORDING + 3 if device.type == "cuda" else 4
    return ("determinism=run", f"precision={precision}", "loader=resident", f"min_steps={steps}")


@pytest.fixture(scope="module")
def whole(train: Train, words: tuple[str, ...]) -> Path:
    return train("whole", *words)


def test_continued_to_the_same_bits(
    whole: Path, launch: Launch, train: Train, words: tuple[str, ...], runs: Path
) -> None:
    stop(launch("stopped", *words, pause=step(3)))
    assert_undisturbed(train("stopped", *words, "resume=auto"), whole)


@pytest.mark.parametrize("more", ["", "optimizer.sharpness_radius=0.1", "loss.hardest=0.5"])
def test_a_graph_takes_the_steps_of_eager_to_the_same_bits(
    more: str, whole: Path, train: Train, words: tuple[str, ...], device: torch.device
) -> None:
    if device.type == "cpu":
        pytest.skip("a CPU has no graphs")
    name, words = more.partition("=")[0], (*words, more) if more else words
    eager = train(f"eager{name}", *words) if more else whole
    assert_undisturbed(train(f"graph{name}", *words, "compile=graph"), eager)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(latest(run) / "model.safetensors")


@pytest.fixture(scope="module")
def one_rank(train: Train) -> Path:
    return train("one", "model.batch_norm=false", "precision=fp32", "min_steps=3")


@pytest.fixture(scope="module")
def at_the_start() -> dict[str, Tensor]:
    network = vgg("vgg_tiny", batch_norm=False, head="compact", num_classes=10, image_size=16)
    initialize(network, "kaiming", 0)
    return network.state_dict()


def test_two_ranks_on_one_gpu_take_the_steps_of_one(
    one_rank: Path, at_the_start: dict[str, Tensor], train: Train
) -> None:
    two = train("two", "model.batch_norm=false", "precision=fp32", "min_steps=3", size=2)
    assert_same_steps(weights(two), weights(one_rank), at_the_start)


@pytest.mark.parametrize("stage", [0, 2])
def test_deepspeed_takes_the_steps_of_ddp(
    stage: int, one_rank: Path, at_the_start: dict[str, Tensor], train: Train, device: torch.device
) -> None:
    if device.type == "cpu":
        pytest.skip("tests/engines has DeepSpeed on a CPU")
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    zero = ("engine=deepspeed", f"deepspeed.stage={stage}")
    run = train(f"zero {stage}", "model.batch_norm=false", "precision=fp32", "min_steps=3", *zero)
    assert_same_steps(weights(run), weights(one_rank), at_the_start)
    shutil.rmtree(run)


def fail_alone(failed: Path, device: str) -> int:
    """As one of two ranks: the second meets a mistake while the first waits for it."""

    def body(world: World) -> None:
        torch.ones(1, device=world.device).sum().item()
        world.barrier()
        if not world.is_main:
            failed.touch()
            raise UserError("sample 40 cannot be decoded")
        world.barrier()

    return rank_process.run(body, Devices(device, ranks_per_gpu=2))


def test_a_rank_that_fails_says_why_at_once(runs: Path, device: torch.device) -> None:
    failed = runs / "failed"
    ranks = Ranks(fail_alone, (failed, device.type), 2, runs / "failing", warm=device.type == "cpu")
    assert ranks.wait() == [EXIT_USER_ERROR] * 2, ranks.stderr
    assert time.time() - failed.stat().st_mtime < SECONDS_TO_SAY_WHY
    assert ranks.stderr == "vgg-ddp: sample 40 cannot be decoded\n"
