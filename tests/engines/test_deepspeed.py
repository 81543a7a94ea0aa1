"""DeepSpeed's engine: the steps of DDP at every ZeRO stage, and checkpoints that either continues."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.ports import free_port
from tests.support.rank_processes import CPU, Ranks, Train
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.config.deepspeed import DeepSpeedConfig
from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.distributed.world import joined
from vgg_ddp.model import initialize, vgg

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

STAGES = (0, 1, 2, 3)
STEPS = 4
TOLERANCE = 2e-4  # relative, of a loss: float32 sums in another order over four steps
BF16_TOLERANCE = 5e-3  # the same in bf16, where ZeRO also sums gradients in bf16
COMMON = (f"min_steps={STEPS}", "ema=0.5", "data.validation=0.1", "accumulation=2", "optimizer.clip_norm=1")


def zero(stage: int) -> tuple[str, str]:
    return "engine=deepspeed", f"deepspeed.stage={stage}"


def losses(run: Path) -> list[float]:
    """The losses of the steps, then that of the validation with the averaged weights."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["scope"] == "steps" or row["split"] == "validation"]


def tensors(run: Path, name: str) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / (run / "checkpoints" / "latest").read_text() / f"{name}.safetensors")


@pytest.fixture(scope="module")
def ddp(train: Train) -> Path:
    return train("ddp", *COMMON, size=2)


@pytest.fixture(scope="module")
def zero_runs(train: Train) -> dict[int, Path]:
    return {stage: train(f"zero {stage}", *COMMON, *zero(stage), size=2) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_losses_of_ddp(stage: int, ddp: Path, zero_runs: dict[int, Path]) -> None:
    """On two ranks, with accumulation, clipping and averaged weights, which the validation sees."""
    expected = losses(ddp)
    assert len(expected) == STEPS + 1
    assert losses(zero_runs[stage]) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["model", "optimizer", "ema"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_saves_what_ddp_saves(stage: int, name: str, ddp: Path, zero_runs: dict[int, Path]) -> None:
    found, expected = tensors(zero_runs[stage], name), tensors(ddp, name)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert {value.dtype for value in found.values()} <= {torch.float32, torch.int64}
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("stage", [3])
def test_bf16_stays_close_to_ddp(stage: int, train: Train) -> None:
    words = (f"min_steps={STEPS}", "precision=bf16")
    expected = train("bf16 ddp", *words, "resume=auto", size=2)
    found = train(f"bf16 {stage}", *words, *zero(stage), size=2)
    assert losses(found) == pytest.approx(losses(expected), rel=BF16_TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_cross_over_bit_by_bit(stage: int, zero_runs: dict[int, Path], runs: Path) -> None:
    """Saved by ZeRO on two ranks, loaded by DDP on one and by ZeRO on one or two: the same bits."""
    origin = zero_runs[stage]
    run = runs / f"crossing {stage}"
    shutil.copytree(origin, run)
    for words, size in (((), 1), (zero(stage), 1 if stage in (0, 2) else 2)):
        output = runs / f"crossing {stage} {words} output"
        config, weights = run / "config.yaml", output.with_suffix(".weights")
        ranks = Ranks(save_again, (config, [f"run.dir={run}", *words], weights), size, output)
        assert ranks.wait() == [0] * size, ranks.stderr
        for name in ("model", "optimizer"):
            found, expected = load_file(f"{weights}.{name}"), tensors(origin, name)
            assert found.keys() == expected.keys()
            assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def save_again(config_path: Path, words: list[str], output: Path) -> int:
    """As a rank: load the run's newest checkpoint into the engine that `words` name, and save what it holds."""
    from safetensors.torch import save_file

    from vgg_ddp import train
    from vgg_ddp.config import load
    from vgg_ddp.data.dataset import Dataset
    from vgg_ddp.run.directory import RunDirectory
    from vgg_ddp.training.job import build_job

    with joined(devices=CPU) as world:
        config = load(config_path, ["engine=ddp", *words])
        dataset = Dataset(config.data.source)
        job = build_job(config, dataset, RunDirectory(config.run.dir), world)
        assert train.resume(job).step == STEPS
        optimizer, _ = job.engine.state()
        model = job.engine.weights()
        if world.is_main:
            for name, held in (("model", model), ("optimizer", optimizer)):
                save_file({key: value.contiguous() for key, value in held.items()}, f"{output}.{name}")
    return 0


@pytest.mark.parametrize(
    ("before", "after", "optimizer"),
    [(zero(0), ("engine=ddp",), "lamb"), (("engine=ddp",), zero(3), "adamw")],
)
def test_a_run_goes_on_in_the_other_engine(
    before: tuple[str, ...], after: tuple[str, ...], optimizer: str, runs: Path, train: Train
) -> None:
    """Set back to its second step and continued by the other engine: the same losses. All on two ranks."""
    name = f"moved {after[-1]}"
    words = (*COMMON, "checkpoint.every_steps=2", "checkpoint.keep=9", f"optimizer.name={optimizer}")
    words += ("optimizer.learning_rate=0.001",)
    undisturbed = losses(train(name, *words, *before, size=2))
    checkpoints = runs / name / "checkpoints"
    shutil.rmtree(checkpoints / f"step-{STEPS:08d}")
    (checkpoints / "best").unlink(missing_ok=True)
    (checkpoints / "latest").write_text("step-00000002")
    run = train(name, *words, *after, "resume=auto", size=2)
    assert len(undisturbed) == STEPS + 1
    assert losses(run) == pytest.approx(undisturbed, rel=TOLERANCE)


def overflow(stage: int, output: Path) -> int:
    """As a rank: a step in which rank 1's gradients overflow float16, then one with ordinary gradients."""
    config = Config(
        network="vgg11",
        batch=16,
        precision="fp16",
        threads=1,
        engine="deepspeed",
        deepspeed=DeepSpeedConfig(stage=stage),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(clip_norm=1.0, learning_rate=0.01),
    )
    with joined(devices=CPU) as world:
        world.use_threads(1)
        network = vgg("A", True, "compact", 10, 16)
        initialize(network, "kaiming", 0)
        engine = engines.build(config, network, world)
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(world.rank))
        scales, weights = [], [engine.weights()["classifier.0.weight"].clone()]
        for factor in (1e4, 1.0):
            loss, _ = engine.forward(images, torch.arange(8), last=True)
            engine.backward(loss * (factor if world.rank == 1 else 1.0))
            engine.step()
            scales.append(engine.state()[1]["scaler"]["scale"])
            weights.append(engine.weights()["classifier.0.weight"].clone())
        kept, moved = (bool(torch.equal(weights[0], later)) for later in weights[1:])
        size = float((weights[2] - weights[0]).norm())
        (output / str(world.rank)).write_text(json.dumps([scales, kept, moved, size]))
    return 0


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_fp16_skips_a_step_that_overflows_on_every_rank_and_halves_the_scale(stage: int, runs: Path) -> None:
    output = runs / f"overflow {stage}"
    output.mkdir()
    ranks = Ranks(overflow, (stage, output), 2, runs / f"overflow {stage} output")
    assert ranks.wait() == [0, 0], ranks.stderr
    first, second = (json.loads((output / rank).read_text()) for rank in "01")
    assert first == second
    scales, kept, unmoved, size = first
    assert (kept, unmoved) == (True, False)
    assert scales == [32768.0, 32768.0]
    assert 0 < size < 0.02  # the learning rate times a norm that is clipped to 1, with Nesterov momentum


def load_without_scale(stage: int) -> int:
    """As a rank: fp16 goes on from a state of another precision, which has no loss scale."""
    config = Config(network="vgg11", precision="fp16", engine="deepspeed", deepspeed=DeepSpeedConfig(stage=stage))  # type: ignore[arg-type]
    with joined(devices=CPU) as world:
        engine = engines.build(config, vgg("A", True, "compact", 10, 16), world)
        values = engine.state()[1]
        assert values["scaler"]["scale"] == 65536
        engine.load_state({}, {**values, "scaler": {}})
        assert engine.state()[1] == values
    return 0


@pytest.mark.parametrize("stage", [0, 1])
def test_fp16_goes_on_from_another_precision_which_has_no_loss_scale(stage: int, runs: Path) -> None:
    ranks = Ranks(load_without_scale, (stage,), 1, runs / f"without scale {stage} output")
    assert ranks.wait() == [0], ranks.stderr


def test_starts_under_the_deepspeed_launcher(ddp: Path, recipe: Path, runs: Path) -> None:
    """Without a C++ compiler, and where nothing can be written at home."""
    run, programs = runs / "launcher", str(Path(sys.executable).parent)
    compilers = ("c++", "g++", "gcc", "cc", "clang", "clang++")
    assert not any(shutil.which(name, path=programs) for name in compilers)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        [*launcher, "--module", "vgg_ddp.train", str(recipe), f"run.dir={run}", *COMMON, *zero(1)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": programs, "HOME": "/proc"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world_size"], environment["engine"]) == (2, "deepspeed, ZeRO stage 1")
    assert "deepspeed" in environment["versions"]
    assert losses(run) == pytest.approx(losses(ddp), rel=TOLERANCE)
