"""The same network, data, batch, precision and device through other training loops, alternating with ours.

    python -m benchmarks.peers [--networks vgg16 ...] [--batches 256 ...] [--json FILE]

Peers: PyTorch Lightning, Hugging Face Accelerate, DeepSpeed's own loop, a timm loop, and a plain torch loop in the
style of the common CIFAR repositories. Each is set up as its documentation recommends for the precision, with
channels-last memory, which is as fast or faster for all of them; their network has torchvision's layers of the same VGG
and one linear layer. All take the same batches from memory: theirs normalised already, ours as uint8. Each runs in a
process of its own, and only one works at a time. All have the same arithmetic settings (cudnn.benchmark, tf32), set
before and checked after each round, and none waits for the device between the steps of a round. A peer that is not
installed (`pip install 'vgg_ddp[peers]'`), or that cannot take a step here, is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import logging
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

import vgg_ddp
from benchmarks.measurement import command, rounds
from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.device_speed import DTYPES, chosen_precision, reference, wait_for
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.plain import plain_network
from benchmarks.throughput.step import Step, cached
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, device_of
from vgg_ddp.errors import UserError

LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
OURS = "vgg_ddp"
Seconds = Callable[[int], float]  # of a number of steps


@dataclass(frozen=True)
class Task:
    """What every peer gets: the network, the same batches, the precision and the device."""

    cell: Cell
    device: torch.device
    images: Tensor
    labels: Tensor

    def network(self) -> nn.Module:
        """A new network, channels last, on the device."""
        return plain_network(self.cell).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD with the settings that all have."""
        return torch.optim.SGD(
            network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the forward pass."""
        return DTYPES[self.cell.precision]

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batch, `count` times."""
        return itertools.repeat((self.images, self.labels), count)

    def timed(self, step: Callable[[Tensor, Tensor], None]) -> Seconds:
        """The seconds of a number of steps, the device's work included."""

        def run(steps: int) -> float:
            start = time.perf_counter()
            for images, labels in self.batches(steps):
                step(images, labels)
            wait_for(self.device)
            return time.perf_counter() - start

        return run


def plain(task: Task) -> Seconds:
    """The loop of the common CIFAR repositories, with torch.autocast and torch's gradient scaler."""
    network, criterion = task.network(), nn.CrossEntropyLoss()
    optimizer = task.optimizer(network)
    scaler = torch.amp.GradScaler(task.device.type, enabled=task.cell.precision == "fp16")
    context = torch.autocast(task.device.type, task.dtype, enabled=task.cell.precision != "fp32")

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with context:
            loss = criterion(network(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return task.timed(step)


def lightning(task: Task) -> Seconds:
    """PyTorch Lightning's Trainer."""
    import lightning as package

    class Module(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = task.network()
            self.marks: list[float] = []

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer(self.network)

        def on_train_batch_end(self, outputs: object, batch: object, number: int) -> None:
            if number in (0, self.trainer.max_steps - 1):
                wait_for(task.device)
                self.marks.append(time.perf_counter())

    class Batches(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
        def __init__(self, count: int) -> None:
            self.count = count

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return task.batches(self.count)

    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module = Module()
    precision = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[task.cell.precision]

    def run(steps: int) -> float:
        """The seconds between the end of the first step, which includes the start-up, and the end of the last."""
        module.marks.clear()
        trainer = package.Trainer(
            max_steps=steps + 1,
            precision=precision,
            accelerator="gpu" if task.device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(Batches(steps + 1), batch_size=None))
        begun, ended = module.marks
        return ended - begun

    return run


def accelerate(task: Task) -> Seconds:
    """Hugging Face Accelerate."""
    from accelerate import Accelerator

    names = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
    accelerator = Accelerator(mixed_precision=names[task.cell.precision], cpu=task.device.type == "cpu")
    network, criterion = task.network(), nn.CrossEntropyLoss()
    network, optimizer = accelerator.prepare(network, task.optimizer(network))

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        loss = criterion(network(images), labels)
        accelerator.backward(loss)
        optimizer.step()

    return task.timed(step)


def deepspeed(task: Task) -> Seconds:
    """DeepSpeed's engine at ZeRO stage 0."""
    import deepspeed as package

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    network, criterion = task.network(), nn.CrossEntropyLoss()
    settings = {
        "train_micro_batch_size_per_gpu": task.cell.batch,
        "zero_optimization": {"stage": 0},
        "bf16": {"enabled": task.cell.precision == "bf16"},
        "fp16": {"enabled": task.cell.precision == "fp16"},
        "data_types": {"buffer_dtype": task.cell.precision},  # as a CPU's batch norm needs it
        "steps_per_print": 10**9,
    }
    with contextlib.redirect_stdout(sys.stderr):
        network.to(memory_format=torch.contiguous_format)  # DeepSpeed broadcasts weights, but only contiguous ones
        engine, *_ = package.initialize(model=network, optimizer=task.optimizer(network), config=settings)
        network.to(memory_format=torch.channels_last)
    cast = task.images.to(task.dtype)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = criterion(engine(cast), labels)
        engine.backward(loss)
        engine.step()

    return task.timed(step)


def timm(task: Task) -> Seconds:
    """The loop of timm's train.py: its optimizer factory, its scaler and autocast."""
    from timm.optim import create_optimizer_v2
    from timm.utils import NativeScaler

    network, criterion = task.network(), nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(network, opt="sgd", lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY)
    context = torch.autocast(task.device.type, task.dtype, enabled=task.cell.precision != "fp32")
    scaler = NativeScaler(device=task.device.type) if task.cell.precision == "fp16" else None

    def step(images: Tensor, labels: Tensor) -> None:
        with context:
            loss = criterion(network(images), labels)
        if scaler is not None:
            scaler(loss, optimizer, parameters=network.parameters())
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()

    return task.timed(step)


PEERS: dict[str, Callable[[Task], Seconds]] = {
    "plain loop": plain,
    "lightning": lightning,
    "accelerate": accelerate,
    "deepspeed": deepspeed,
    "timm": timm,
}


def installed(names: list[str]) -> dict[str, str]:
    """The versions of those peers that can be imported; the others are named on stderr."""
    versions = {}
    for name in names:
        if name == "plain loop":
            versions[name] = str(torch.__version__)
            continue
        try:
            versions[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            print(f"{name} is not installed and is left out; pip install 'vgg_ddp[peers]'", file=sys.stderr)
    return versions


def ours(cell: Cell) -> Seconds:
    """The step of vgg_ddp, with the settings that its rank processes have."""
    keep_freed_memory()
    world = World(0, 1, 0, 1, device_of(0))
    step = Step(cell, world, cached(cell, world))
    step.phases_apart = False
    return lambda steps: step.run(steps).seconds


def work(build: Callable[[Task], Seconds] | None, cell: Cell, threads: int, connection: Connection) -> None:
    """A side's process: builds it, then answers each number of steps with the seconds that they took.

    Args:
        build: builds a peer; None for our own step.
        connection: its first message says why the side cannot take a step here, and is empty if it can.
    """
    warnings.filterwarnings("ignore")  # the peers' advice on logging, workers and the like
    torch.set_num_threads(threads)
    try:
        with arithmetic(cell.precision):
            run = ours(cell) if build is None else build(task(cell))
            run(1)
    except Exception as error:  # whatever another package raises
        if build is None and not isinstance(error, UserError | torch.OutOfMemoryError):
            raise
        connection.send((str(error).splitlines() or [type(error).__name__])[0])
        return
    connection.send("")
    with contextlib.suppress(EOFError):  # the benchmark has ended, in whatever way
        while steps := connection.recv():
            with arithmetic(cell.precision):
                seconds = run(steps)
            connection.send(seconds)


def task(cell: Cell) -> Task:
    """What every peer gets, made alike in each one's process."""
    world = World(0, 1, 0, 1, device_of(0))
    images, labels = next(cached(cell, world))
    pixels = ((images.permute(0, 3, 1, 2).float() - 128.0) / 64.0).contiguous(memory_format=torch.channels_last)
    return Task(cell, world.device, pixels, labels)


@contextlib.contextmanager
def side(name: str, cell: Cell, options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """A process that measures one side; images per second at each call.

    Raises:
        UserError: the side cannot take a step here, or its process has ended.
    """
    context = multiprocessing.get_context(
        "forkserver"
    )  # each from one process that has imported torch and done no more
    here, there = context.Pipe()
    process = context.Process(target=work, args=(PEERS.get(name), cell, options.threads, there))
    process.start()
    there.close()

    def answer() -> Any:
        try:
            return here.recv()
        except EOFError:
            raise UserError(f"the process of {name} has ended, perhaps out of memory: try smaller --batches") from None

    def rate() -> float:
        here.send(options.steps)
        return float(cell.batch * options.steps / answer())

    try:
        reason = answer()
        if reason:
            raise UserError(reason)
        yield rate
    finally:
        here.close()  # which ends its process
        process.join(30)
        process.kill()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for ours and each peer in each cell of the grid.

    Raises:
        UserError: no side can be measured in any cell; why the first one cannot.
    """
    versions = {OURS: vgg_ddp.__version__, **installed(options.peers)}
    rows: list[dict[str, Any]] = []
    precision = chosen_precision(options.precision, device_of(0))
    for network, batch in itertools.product(options.networks, options.batches):
        cell = Cell(network, options.image_size, batch, precision, "channels_last")
        with contextlib.ExitStack() as stack:
            sides, left_out = {}, {}
            for name in versions:
                try:
                    sides[name] = stack.enter_context(side(name, cell, options))
                except UserError as error:
                    left_out[name] = str(error)
                    print(f"{cell.name} {name} is left out: {error}", file=sys.stderr)
            sides[rounds.REFERENCE] = reference(device_of(0))
            try:
                rates = rounds.in_turns(sides, options.rounds)
            except UserError as error:  # a side has ended: what the others measured beside it cannot be used
                print(f"{cell.name} is left out: {error}", file=sys.stderr)
                rows += [{"name": f"{cell.name} {name}", "left_out": str(error)} for name in versions]
                continue
        speed, begun = rates.pop(rounds.REFERENCE), len(rows)
        for name, values in rates.items():
            # The ratio is taken within each round, between measurements of the same moment.
            ratio = statistics.median(a / b for a, b in zip(rates[OURS], values)) if OURS in rates else None
            about = {"name": f"{cell.name} {name}", "side": name, "version": versions[name], **vars(cell)}
            rows.append({**about, **rounds.summary(values, reference=speed), "ours_to_theirs": ratio})
        show(rows[begun:])
        rows += [{"name": f"{cell.name} {name}", "left_out": reason} for name, reason in left_out.items()]
    if all("left_out" in row for row in rows):
        raise UserError(f"{rows[0]['name']}: {rows[0]['left_out']}")
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a line for each side of a cell."""
    for row in rows:
        span = f"{row['least']:.1f} to {row['most']:.1f}"
        ratio = "" if row["ours_to_theirs"] is None else f"ours to theirs {row['ours_to_theirs']:.2f}"
        print(
            f"{row['name'].removesuffix(row['side']):<40} {row['side'] + ' ' + row['version']:<26} "
            f"{row['images_per_second']:8.1f} images/s {span:>17}   {ratio}",
            flush=True,
        )


def main() -> None:
    """Measure, print and keep the rows."""
    parser = command.parser("peers", __doc__)
    parser.add_argument("--networks", nargs="+", default=["vgg16"], help="(default: vgg16)")
    parser.add_argument(
        "--batches", nargs="+", type=command.count, default=[256], help="images in a step (default: 256)"
    )
    parser.add_argument("--image-size", type=command.count, default=32, help="pixels (default: 32)")
    parser.add_argument("--precision", default="auto", choices=command.PRECISIONS, help=command.PRECISION_HELP)
    parser.add_argument("--steps", type=command.count, default=2, help="steps in a round (default: 2)")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), help="(default: all)")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(["benchmarks.throughput.step"])
    torch.set_num_threads(options.threads)
    rows = measure(options)
    command.keep(options, rows, "images_per_second", "images per second")


if __name__ == "__main__":
    command.run(main)
