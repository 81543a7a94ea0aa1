"""Images per second of the training step over a grid of settings, where its time goes, and how near it is to the peak.

    python -m benchmarks.throughput [--networks vgg16 ...] [--precisions bf16 ...] [--data SOURCE] [--json FILE]

Every cell of the grid is measured in turns with the others and with a plain fp32 NCHW loop over torchvision's layers, on one
batch that lies in memory; with `--data` also from a prepared data set, end to end. MFU is the step's arithmetic over what a
large matrix product of the same precision reaches in the same turns; joules are shown where the device counts them. `torchrun`
starts it on several ranks; then the time of communication is that of a step with the gradients' reduction less that of one
without.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
import torchvision
from torch import nn

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import DTYPES, chosen_precision, copy, matrix_product, reference, wait_for
from benchmarks.measurement.energy import meter as energy_meter
from benchmarks.measurement.flops import flop_per_image, layers
from benchmarks.measurement.step import CLASSES, PHASES, TrainingStep, noise
from vgg_ddp import loaders
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.order import Order
from vgg_ddp.distributed.memory import keep_freed_memory, peak_bytes
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.loaders.choice import choose
from vgg_ddp.training import parts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAYOUTS = ("channels_last", "contiguous")
COMPILE = {"true": True, "false": False, "stages": "stages"}
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Cell:
    """One setting of the grid."""

    network: str
    image_size: int
    batch: int
    precision: str
    layout: str
    compile: bool | Literal["stages"] = False
    engine: str = "ddp"
    recompute: str = "none"

    @property
    def name(self) -> str:
        """The settings in words; those left at their defaults are not named."""
        compiled = {False: "", True: " compiled", "stages": " compiled by stages"}[self.compile]
        engine = "" if self.engine == "ddp" else f" {self.engine}"
        recompute = "" if self.recompute == "none" else f" {self.recompute} again"
        cell = f"{self.network} {self.image_size}px {self.batch} {self.precision} {self.layout}"
        return cell + compiled + engine + recompute

    def config(self, world: World) -> Config:
        """The configuration of a training with these settings."""
        return Config(
            network=self.network,  # type: ignore[arg-type]
            batch=self.batch * world.size,
            precision=self.precision,  # type: ignore[arg-type]
            channels_last=self.layout == "channels_last",
            compile=self.compile,
            engine=self.engine,  # type: ignore[arg-type]
            recompute=self.recompute,  # type: ignore[arg-type]
            data=DataConfig(image_size=self.image_size),
            augment=AugmentConfig(crop_padding=4, flip=True),
        )


class Step:
    """The step of the training loop, timed by phase."""

    def __init__(self, cell: Cell, world: World, batches: Batches) -> None:
        self._training = TrainingStep(cell.config(world), world)
        self.flop_per_image = flop_per_image(self._training.network, cell.image_size)
        self._batches, self._device = batches, world.device

    def run(self, steps: int, reduce: bool = True) -> tuple[float, dict[str, float]]:
        """Seconds of `steps` steps, the device's work included, and of the phases of one as the host sees them.

        On a GPU the host runs ahead: there the phases are those of further steps in which it waits after each.
        """
        start = time.perf_counter()
        phases = self._phases(steps, reduce, wait=False)
        wait_for(self._device)
        seconds = time.perf_counter() - start
        return seconds, self._phases(steps, reduce, wait=True) if self._device.type == "cuda" else phases

    def _phases(self, steps: int, reduce: bool, wait: bool) -> dict[str, float]:
        seconds = dict.fromkeys(("data_wait", *PHASES), 0.0)
        for _ in range(steps):
            marks = [time.perf_counter()]

            def mark(marks: list[float] = marks) -> None:
                if wait:
                    wait_for(self._device)
                marks.append(time.perf_counter())

            images, labels = next(self._batches)
            mark()
            self._training.run(images, labels, reduce, mark)
            for phase, begin, end in zip(seconds, marks, marks[1:]):
                seconds[phase] += (end - begin) / steps
        return seconds

    def profile(self, folder: Path, steps: int = 3) -> None:
        """Write a chrome trace of some steps, and on a GPU a snapshot of its memory."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._device.type == "cuda":
            torch.cuda.memory._record_memory_history()
        with torch.profiler.profile() as profiler:
            self.run(steps)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)


def plain_network(cell: Cell) -> nn.Module:
    """The same network of torchvision's layers, with one linear layer."""
    features = getattr(torchvision.models, f"{cell.network}_bn")(weights=None).features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * (cell.image_size // 32) ** 2, 10))


class PlainStep:
    """The step of a short script: torchvision's layers, fp32, contiguous NCHW, torch's SGD with its defaults."""

    def __init__(self, cell: Cell, world: World) -> None:
        self._network = plain_network(cell).to(world.device)
        images, labels = next(cached(cell, world))
        self._pixels, self._labels = ((images.permute(0, 3, 1, 2).float() - 128.0) / 64.0).contiguous(), labels
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self._criterion = nn.CrossEntropyLoss()

    def run(self, steps: int) -> float:
        """Seconds of `steps` steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad()
            self._criterion(self._network(self._pixels), self._labels).backward()
            self._optimizer.step()
        wait_for(self._pixels.device)
        return time.perf_counter() - start


def cached(cell: Cell, world: World) -> Batches:
    """The same batch of noise again and again."""
    return itertools.repeat(noise(cell.batch, cell.image_size, world))


def loaded(cell: Cell, world: World, directory: Path, loader: str) -> Batches:
    """Batches of a prepared data set by one of the loaders, epoch after epoch."""
    config = cell.config(world)
    split = Dataset(directory).split("train")
    choice = choose(loader, split, config.data, world)
    geometry = training_geometry(config.data, config.augment, 0)
    built = loaders.build(choice.name, split, geometry, config.data, world, cell.batch)
    order = Order(0, np.arange(len(split)), config.batch)
    for epoch in itertools.count():
        for batch in built.stream(order.slices(epoch, world.rank, world.size)):
            yield batch.images, batch.labels


def grid(options: argparse.Namespace, world: World) -> list[Cell]:
    """The cells of the grid."""
    precisions = dict.fromkeys(chosen_precision(name, world.device) for name in options.precisions)
    axes = (options.networks, options.image_sizes, options.batches, precisions, options.layouts)
    return [Cell(*values) for values in itertools.product(*axes, options.compile, options.engines, options.recompute)]


def measure(options: argparse.Namespace, world: World) -> list[dict[str, Any]]:
    """A row for each cell, for the plain loop, and for the device's peak."""
    cells = grid(options, world)
    joules = energy_meter(world.device)
    energy: dict[str, list[float]] = defaultdict(list)
    directory = ensure(DataConfig(source=options.data), lambda line: None)[0] if options.data else None
    steps: dict[str, tuple[Cell, Step]] = {}
    sides: dict[str, Callable[[], float]] = {}
    phases: dict[str, list[dict[str, float]]] = defaultdict(list)
    for cell in cells:
        sources = {"": cached(cell, world)}
        if directory is not None:
            sources[f" from {options.loader}"] = loaded(cell, world, directory, options.loader)
        for suffix, batches in sources.items():
            name = cell.name + suffix
            steps[name] = cell, Step(cell, world, batches)
            sides[name] = lambda name=name: rate(name)  # type: ignore[misc]

    def rate(name: str) -> float:
        cell, step = steps[name]
        before = joules() if joules else 0.0
        seconds, of_phases = step.run(options.steps)
        if joules:
            energy[name].append((joules() - before) / (cell.batch * options.steps))
        if world.size > 1:
            without = step.run(options.steps, reduce=False)[0]
            of_phases["communication"] = max(0.0, (seconds - without) / options.steps)
        phases[name].append(of_phases)
        return cell.batch * world.size * options.steps / seconds

    if options.plain:
        for cell in {(c.network, c.image_size, c.batch): c for c in cells}.values():
            plain = PlainStep(cell, world)
            name = f"plain {cell.network} {cell.image_size}px {cell.batch} fp32"
            sides[name] = lambda cell=cell, plain=plain: cell.batch * options.steps / plain.run(options.steps)  # type: ignore[misc]
    for precision in dict.fromkeys(cell.precision for cell in cells):
        sides[f"matrix product {precision}"] = matrix_product(world.device, precision)
    sides["copy"] = copy(world.device)
    sides[rounds.REFERENCE] = reference(world.device)
    rates = rounds.in_turns(sides, options.rounds)
    speed = rates.pop(rounds.REFERENCE)
    rows = []
    for name, values in rates.items():
        if name in steps:
            cell, step = steps[name]
            row = {
                "name": name,
                **vars(cell),
                "world_size": world.size,
                **rounds.summary(values, reference=speed),
                "seconds": {p: statistics.median(s[p] for s in phases[name][1:]) for p in phases[name][0]},
                "flop_per_image": step.flop_per_image,
            }
            if joules:
                row["joules_per_image"] = statistics.median(energy[name][1:])
            top = statistics.median(rates[f"matrix product {cell.precision}"])
            row["mfu"] = row["images_per_second"] / world.size * step.flop_per_image / top
            if len(cells) == 1:
                row["peak_memory_bytes"] = peak_bytes(world)
        elif name.startswith("plain"):
            row = {"name": name, **rounds.summary(values, reference=speed)}
        else:
            unit = "bytes_per_second" if name == "copy" else "flop_per_second"
            row = {"name": name, **rounds.summary(values, unit, speed)}
        rows.append(row)
    if options.profile:
        name, (_, step) = next(iter(steps.items()))
        step.profile(options.profile)
    return rows


def draw_roofline(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each layer of the first cell where its arithmetic per byte puts it under the measured peaks."""
    row = next(row for row in rows if "network" in row)
    product = next(r for r in rows if r["name"] == f"matrix product {row['precision']}")["flop_per_second"]
    copied = next(r for r in rows if r["name"] == "copy")["bytes_per_second"]
    width = DTYPES[row["precision"]].itemsize
    cell = Cell(row["network"], row["image_size"], row["batch"], row["precision"], row["layout"])
    cpu = torch.device("cpu")
    network = parts.build_network(cell.config(World(0, 1, 0, 1, cpu)), CLASSES, cpu)
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = np.logspace(-1, 4, 200)
    axes.plot(intensity, np.minimum(product, intensity * copied) / 1e9, color="black")
    for layer in layers(network, row["image_size"]):
        # A layer without products does about one operation a value.
        x = max(layer.training_flops, layer.training_values) / (layer.training_values * width)
        axes.plot(x, min(product, x * copied) / 1e9, "o", color="tab:blue" if layer.forward_flops else "tab:orange")
        axes.annotate(layer.name, (x, min(product, x * copied) / 1e9), fontsize=6)
    axes.axhline(row["images_per_second"] * row["flop_per_image"] / 1e9, linestyle="--", color="tab:green")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.set_title(f"{row['name']}: attainable by layer (dots), reached by the whole step (dashed)")
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a line for each row, and the first cell against the plain loop."""
    print(f"{'':<44} {'images/s':>9} {'least to most':>17} {'MFU':>5}  seconds of a step")
    for row in rows:
        if "images_per_second" in row:
            mfu = f"{row['mfu']:5.2f}" if "mfu" in row else " " * 5
            split = "  ".join(f"{name} {seconds:.4f}" for name, seconds in row.get("seconds", {}).items())
            span = f"{row['least']:.1f} to {row['most']:.1f}"
            joules = f"  {row['joules_per_image']:.2f} J an image" if "joules_per_image" in row else ""
            print(f"{row['name']:<44} {row['images_per_second']:9.1f} {span:>17} {mfu}  {split}{joules}")
        elif "flop_per_second" in row:
            print(f"{row['name']:<44} {row['flop_per_second'] / 1e9:9.1f} GFLOP/s")
        else:
            print(f"{row['name']:<44} {row['bytes_per_second'] / 1e9:9.1f} GB/s")
    plain = next((row for row in rows if row["name"].startswith("plain")), None)
    if plain:
        print(
            f"{rows[0]['name']} against the plain loop: {rows[0]['images_per_second'] / plain['images_per_second']:.2f}"
        )


def main() -> None:
    """Measure on every rank that torchrun started; print and keep the rows on the first."""
    parser = command.parser("throughput", __doc__)
    networks = ["vgg11", "vgg13", "vgg16", "vgg19"]
    parser.add_argument("--networks", nargs="+", default=["vgg16"], choices=networks, help="(default: vgg16)")
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[32], help="pixels (default: 32)")
    parser.add_argument("--batches", nargs="+", type=int, default=[256], help="images a rank and step (default: 256)")
    precisions = [*command.PRECISIONS, "tf32"]
    parser.add_argument("--precisions", nargs="+", default=["auto"], choices=precisions, help=command.PRECISION_HELP)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS[:1], choices=LAYOUTS, help="(default: channels_last)")
    parser.add_argument("--compile", nargs="+", default=["false"], choices=list(COMPILE), help="(default: false)")
    parser.add_argument("--engines", nargs="+", default=["ddp"], choices=["ddp", "deepspeed"], help="(default: ddp)")
    parser.add_argument(
        "--recompute", nargs="+", default=["none"], choices=["none", "normalisation", "stages"], help="(default: none)"
    )
    parser.add_argument("--data", help="also end to end, from what vgg-ddp prepare takes")
    parser.add_argument("--loader", default="auto", help="with --data (default: auto)")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain fp32 loop")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round (default: 2)")
    parser.add_argument("--profile", type=Path, help="write a trace of the first cell to this folder")
    parser.add_argument("--roofline", type=Path, help="draw the first cell's layers under the measured peaks")
    options = parser.parse_args()
    options.compile = [COMPILE[name] for name in options.compile]
    keep_freed_memory()
    with joined() as world:
        torch.set_num_threads(max(1, options.threads // world.local_size))
        rows = measure(options, world)
        if world.is_main:
            show(rows)
            command.keep(options, rows, "images_per_second", "images per second")
            if options.roofline:
                draw_roofline(options.roofline, rows)


if __name__ == "__main__":
    command.run(main)
