"""The training step on the device: its precisions, what the host waits for, its memory, its reduction over NCCL."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.step import CLASSES, TrainingStep, noise
from tests.model.test_fused_norm import SHAPES, distances
from tests.model.test_fused_norm import TOLERANCES as TOLERANCES_OF_FUSED
from tests.support.rank_processes import apart
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.schema import LogConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.distributed.memory import used_bytes
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.ddp import DdpEngine
from vgg_ddp.loaders import Batch
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import MetricsLog
from vgg_ddp.train import train
from vgg_ddp.training import parts
from vgg_ddp.training.job import Job, build_job
from vgg_ddp.training.recorder import Recorder
from vgg_ddp.training.stopping import StopRequest

SMALL = Config(network="vgg11", batch=16, data=DataConfig(image_size=16, resize=None, validation=0, workers=0))
# Relative distance of the first update from that of fp32: the products' operands keep 10, 10 and 7 bits. A CPU was off
# by 0.10 in fp16 and 0.2 in bf16: an untrained network amplifies rounding, since pools and ReLU choose differently.
TOLERANCES = {"tf32": 0.2, "fp16": 0.2, "bf16": 0.6}


def first_update(precision: str, world: World) -> Tensor:
    """The change of all weights in the first step that does not overflow float16."""
    config = msgspec.structs.replace(SMALL, precision=precision)
    with arithmetic(precision):
        step = TrainingStep(config, world)
        before = weights(step)
        for _ in range(20):
            step.run(*noise(config.batch, config.data.image_size, world))
            update = weights(step) - before
            if update.any():
                return update
    raise AssertionError("every step overflowed")


def weights(step: TrainingStep) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in step.network.parameters()])


@pytest.fixture(scope="module")
def exact(world: World) -> Tensor:
    return first_update("fp32", world)


@pytest.mark.seconds
@pytest.mark.parametrize("precision", TOLERANCES)
def test_each_precision_takes_the_step_of_fp32(precision: str, exact: Tensor, world: World) -> None:
    distance = ((first_update(precision, world) - exact).norm() / exact.norm()).item()
    assert distance < TOLERANCES[precision], distance
    if world.device.type == "cuda":
        assert distance > 0  # it was computed in that precision


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCES_OF_FUSED, ids=str)
def test_the_fused_layer_is_torch_s_to_rounding(dtype: torch.dtype, pool: int, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/model has it by Triton's interpreter")
    for shape in [*SHAPES, (64, 128, 16, 16)]:
        assert max(distances(dtype, shape, pool, frozen=False, device="cuda")) < 4 * TOLERANCES_OF_FUSED[dtype]


def bytes_of_tensors(device: torch.device) -> int:
    """On a GPU all allocated memory; on a CPU that of live tensors, since a process also grows for other reasons."""
    if device.type == "cuda":
        return used_bytes(device)
    gc.collect()
    storages = [tensor.untyped_storage() for tensor in gc.get_objects() if issubclass(type(tensor), Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True)
class Watched(Job):
    """A job that calls `watch` before each batch, with the number of steps that were taken."""

    watch: Callable[[int], None]

    def batches(self, state: State) -> Iterator[Batch]:
        for batch in super().batches(state):
            self.watch(state.step)
            yield batch


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("loader", "augment", "compile"),
    [
        ("resident", {}, False),
        ("resident", {"cutout": 4, "mixup": 0.2, "brightness": 0.2, "colour_shift": 0.1}, False),
        ("resident", {}, "graph"),
        ("torch", {}, False),
        ("dali", {}, False),
    ],
    ids=["resident", "resident, augmented", "resident, graph", "torch", "dali"],
)
def test_no_step_waits_for_the_device_or_keeps_memory(
    loader: str,
    augment: dict[str, float],
    compile: bool | str,
    precision: str,
    few_digits: Path,
    tmp_path: Path,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training loop itself, in epochs of ten steps; after the first few, the host may not wait."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    if compile == "graph" and world.device.type == "cpu":
        pytest.skip("a CPU has no graphs")
    if world.device.type == "cuda":
        monkeypatch.setattr("vgg_ddp.model.fused_norm.SMALLEST", 0)  # these images are below the usual threshold
    epochs = 2 if compile == "graph" else 1  # a graph is recorded in the second
    first, last = 10 * epochs - 6, 10 * epochs - 1
    used = []

    def watch(step: int) -> None:
        if world.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if first <= step < last else "default")
        if step in (first, last):
            used.append(bytes_of_tensors(world.device))

    keys = {"loader": loader, "compile": compile, "precision": precision, "epochs": epochs}
    augmentation = AugmentConfig(crop_padding=2, flip=True, **augment)
    config = msgspec.structs.replace(SMALL, **keys, augment=augmentation, log=LogConfig(every_steps=1000))
    run = RunDirectory(str(tmp_path))
    run.checkpoints.mkdir()
    state = State(identity={})
    with contextlib.ExitStack() as stack:
        stack.enter_context(arithmetic(precision))
        job = build_job(config, Dataset(few_digits), run, world)
        watched = Watched(**{field.name: getattr(job, field.name) for field in fields(job)}, watch=watch)
        log = stack.enter_context(MetricsLog(run.metrics))
        progress = stack.enter_context(TrainingProgress(job.total_steps, 0, shown=False))
        recorder = Recorder(state, world, config.batch, job.data.order.steps_per_epoch, job.total_steps, log, progress)
        stack.enter_context(job.saver)
        if world.device.type == "cuda":
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        stop = stack.enter_context(StopRequest(world, config.log.every_steps))
        train(watched, state, recorder, stop)
    assert state.step == 10 * epochs
    assert used[1] <= used[0]


def steps_alone(device: torch.device) -> list[Tensor]:
    """In a group of one rank: the weights after three steps, with gradients reduced over the group and without."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    world = World(0, 1, 0, 1, device)
    found = []
    with arithmetic("fp32"):
        torch.backends.cudnn.deterministic = True
        for reduce_gradients in (False, True):
            config = msgspec.structs.replace(SMALL, precision="fp32")
            network = parts.build_network(config, CLASSES, device)
            engine = DdpEngine(config, network, world, reduce_gradients=reduce_gradients, micro_batch=config.batch)
            generator = torch.Generator().manual_seed(0)
            for _ in range(3):
                images = torch.randn(config.batch, 3, 16, 16, generator=generator).to(device)
                loss, _ = engine.forward(images, torch.arange(config.batch, device=device) % CLASSES, last=True)
                engine.backward(loss)
                engine.step()
            found.append(torch.cat([parameter.detach().flatten().cpu() for parameter in network.parameters()]))
    dist.destroy_process_group()
    return found


@pytest.mark.seconds
def test_nccl_of_one_rank_changes_nothing(device: torch.device) -> None:
    alone, reduced = apart(steps_alone, device, warm=device.type == "cpu")
    assert torch.equal(alone, reduced) if device.type == "cpu" else torch.allclose(alone, reduced, rtol=1e-3, atol=1e-5)
