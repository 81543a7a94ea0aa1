"""Images per second of the training step over a grid of settings, where its time goes, and how near it is to the peak.

    python -m benchmarks.throughput [--networks vgg16 ...] [--precisions bf16 ...] [--data SOURCE] [--json FILE]

Every cell of the grid is measured in turns with the others and with a plain fp32 NCHW loop over torchvision's layers, on one
batch that lies in memory; with `--data` also from a prepared data set, end to end. Before the first round it says what each
step should take: its arithmetic and its traffic, layer by layer, at the rates of a large matrix product and a large copy. MFU
is the step's arithmetic over what a large matrix product of the same precision reaches in the same turns; joules are shown
where the device counts them. A cell that does not fit into memory, or cannot be compiled, is named and left out. `torchrun`
starts it on several ranks; then the time of communication is that of a step with the gradients' reduction less that of one
without.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import numpy as np
import torch
import torchvision
from torch import nn

from benchmarks.measurement import command, rounds
from benchmarks.measurement.arithmetic import arithmetic
from benchmarks.measurement.device_speed import DTYPES, chosen_precision, copy, matrix_product, reference, wait_for
from benchmarks.measurement.energy import meter as energy_meter
from benchmarks.measurement.flops import Layer, layers
from benchmarks.measurement.step import CLASSES, PHASES, TrainingStep, noise
from benchmarks.scaling_model.device import Device, roofline
from vgg_ddp import loaders
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.order import Order
from vgg_ddp.distributed.memory import keep_freed_memory, peak_bytes, reset_peak
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.errors import UserError
from vgg_ddp.loaders.choice import choose
from vgg_ddp.training import parts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAYOUTS = ("channels_last", "contiguous")
COMPILE = {"true": True, "false": False, "stages": "stages", "graph": "graph"}
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Cell:
    """One setting of the grid."""

    network: str
    image_size: int
    batch: int
    precision: str
    layout: str
    compile: bool | str = False
    engine: str = "ddp"
    recompute: str = "none"
    fused: bool = True

    @property
    def name(self) -> str:
        """The settings in words; those left at their defaults are not named."""
        compiled = {False: "", True: " compiled", "stages": " compiled by stages", "graph": " graph"}[self.compile]
        engine = "" if self.engine == "ddp" else f" {self.engine}"
        recompute = "" if self.recompute == "none" else f" {self.recompute} again"
        cell = f"{self.network} {self.image_size}px {self.batch} {self.precision} {self.layout}"
        return cell + compiled + engine + recompute + ("" if self.fused else " unfused")

    def config(self, world: World) -> Config:
        """The configuration of a training with these settings.

        Raises:
            UserError: there is no such training.
        """
        settings = {
            "network": self.network,
            "batch": self.batch * world.size,
            "precision": self.precision,
            "channels_last": self.layout == "channels_last",
            "compile": self.compile,
            "engine": self.engine,
            "recompute": self.recompute,
            "model": {"fused": self.fused},
            "data": {"image_size": self.image_size},
            "augment": {"crop_padding": 4, "flip": True},
        }
        try:
            return msgspec.convert(settings, Config)
        except msgspec.ValidationError as error:
            raise UserError(str(error)) from None


@dataclass(frozen=True)
class Timing:
    """What some steps took.

    Attributes:
        seconds: of all of them, the device's work included.
        joules: of all of them; not a number where nobody counts.
        phases: seconds of each phase of one step, as the host sees them.
    """

    seconds: float
    joules: float
    phases: dict[str, float]


class Step:
    """The step of the training loop, timed by phase.

    Attributes:
        is_graph, first_steps: see `TrainingStep`.
        phases_apart: whether the phases are those of further steps, in which the host waits after each: where it runs ahead
            of the device, as on a GPU.
        peak_bytes: the most memory that a rank uses for a step, where that was measured (`measure_peak`).
    """

    def __init__(
        self, cell: Cell, world: World, batches: Batches, joules: Callable[[], float] = lambda: math.nan
    ) -> None:
        self._training = TrainingStep(cell.config(world), world)
        self.is_graph, self.first_steps = self._training.is_graph, self._training.first_steps
        self.layers = layers(self._training.network, cell.image_size)
        self._precision, self._batches, self._device, self._joules = cell.precision, batches, world.device, joules
        self.phases_apart = world.device.type == "cuda"
        self.peak_bytes: int | None = None

    @property
    def flop_per_image(self) -> float:
        """Of forward and backward."""
        return sum(layer.training_flops for layer in self.layers)

    def run(self, steps: int, reduce: bool = True) -> Timing:
        """Take `steps` steps."""
        with arithmetic(self._precision):
            before, start = self._joules(), time.perf_counter()
            phases = self._phases(steps, reduce, wait=False)
            wait_for(self._device)
            seconds, joules = time.perf_counter() - start, self._joules() - before
            if self.phases_apart:
                phases = self._phases(steps, reduce, wait=True)
        return Timing(seconds, joules, phases)

    def measure_peak(self, world: World) -> None:
        """Note the peak of one more step, or of all so far where they are a graph. All ranks together."""
        if not self.is_graph:  # whose memory was allocated as it was recorded: playing it again allocates none
            reset_peak(world.device)
            self.run(1)
        self.peak_bytes = peak_bytes(world)

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
        """Print and write the longest kernels of some steps, a chrome trace, and on a GPU a snapshot of its memory."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._device.type == "cuda":
            torch.cuda.memory._record_memory_history()
        with torch.profiler.profile() as profiler:
            self.run(steps)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        kernels = longest_kernels(profiler, self._device)
        (folder / "kernels.json").write_text(command.as_json(kernels) + "\n")
        for kernel in kernels:
            print(
                f"{kernel['share']:6.1%} {kernel['seconds'] * 1e3:9.3f} ms {kernel['calls']:5}  {kernel['name'][:90]}"
            )
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)


def longest_kernels(profiler: torch.profiler.profile, device: torch.device, count: int = 10) -> list[dict[str, Any]]:
    """The kernels (on a CPU: operators) that took the most time by themselves, and their share of that of all."""
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    of_kind = [event for event in profiler.key_averages() if event.device_type == kind]
    time_of = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    microseconds = {event.key: (getattr(event, time_of), event.count) for event in of_kind}
    total = sum(spent for spent, _ in microseconds.values())
    longest = sorted(microseconds.items(), key=lambda item: item[1][0], reverse=True)[:count]
    return [
        {"name": name, "seconds": spent / 1e6, "calls": calls, "share": spent / total}
        for name, (spent, calls) in longest
    ]


@dataclass(frozen=True)
class Prediction:
    """What a step should take: its arithmetic, its traffic with the device's memory, and the time for both."""

    flop: float
    bytes: float
    seconds: float


def predicted(network: list[Layer], cell: Cell, product: float, copy: float) -> Prediction:
    """The prediction for a cell from the rates of a matrix product (FLOP/s) and a copy (bytes/s).

    Each layer by itself takes the longer of its arithmetic and its traffic, so no layer is fused with another. The update
    reads and writes weights and momenta and reads gradients, all of 4 bytes.
    """
    width = DTYPES[cell.precision].itemsize
    device = Device("this", product, copy, 1.0, width, "measured")
    update = 5 * 4 * sum(layer.weights for layer in network)
    traffic = width * sum(cell.batch * layer.training_values + 3 * layer.weights for layer in network)
    return Prediction(
        flop=cell.batch * sum(layer.training_flops for layer in network),
        bytes=traffic + update,
        seconds=sum(map(sum, roofline(network, cell.batch, device))) + update / copy,
    )


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
        with arithmetic("fp32"):
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
    """Batches of a prepared data set by one of the loaders, epoch after epoch.

    Raises:
        UserError: at the first batch, if the data set has fewer images.
    """
    config = cell.config(world)
    split = Dataset(directory).split("train")
    choice = choose(loader, split, config.data, world)
    geometry = training_geometry(config.data, config.augment, 0)
    built = loaders.build(choice.name, split, geometry, config.data, world, cell.batch)
    order = Order(0, np.arange(len(split)), config.batch)
    if not order.steps_per_epoch:
        raise UserError(
            f"{len(split)} training images are fewer than one batch of {config.batch}; set --batches to that or less"
        )
    for epoch in itertools.count():
        for batch in built.stream(order.slices(epoch, world.rank, world.size)):
            yield batch.images, batch.labels


def grid(options: argparse.Namespace, world: World) -> list[Cell]:
    """The cells of the grid."""
    precisions = dict.fromkeys(chosen_precision(name, world.device) for name in options.precisions)
    axes = (options.networks, options.image_sizes, options.batches, precisions, options.layouts, options.compile)
    return [Cell(*values) for values in itertools.product(*axes, options.engines, options.recompute, options.fused)]


def measure(options: argparse.Namespace, world: World) -> list[dict[str, Any]]:
    """A row for each cell, for the plain loop, and for the device's peak.

    Raises:
        UserError: no cell can be measured; why the first one cannot.
    """
    cells = grid(options, world)
    energy: dict[str, list[float]] = defaultdict(list)
    phases: dict[str, list[dict[str, float]]] = defaultdict(list)
    steps, left_out = build_steps(cells, options, world)

    def rate(name: str) -> float:
        cell, step = steps[name]
        timing = step.run(options.steps)
        energy[name].append(timing.joules / (cell.batch * options.steps))
        if world.size > 1 and not step.is_graph and cell.engine == "ddp":  # DeepSpeed has no step without a reduction
            without = step.run(options.steps, reduce=False).seconds
            timing.phases["communication"] = max(0.0, (timing.seconds - without) / options.steps)
        phases[name].append(timing.phases)
        return cell.batch * world.size * options.steps / timing.seconds

    sides: dict[str, Callable[[], float]] = {name: lambda name=name: rate(name) for name in steps}  # type: ignore[misc]
    if options.plain:
        for cell in {(c.network, c.image_size, c.batch): c for c in cells}.values():
            plain = PlainStep(cell, world)
            name = f"plain {cell.network} {cell.image_size}px {cell.batch} fp32"
            sides[name] = lambda cell=cell, plain=plain: (  # type: ignore[misc]
                cell.batch * world.size * options.steps / plain.run(options.steps)
            )
    products = {p: matrix_product(world.device, p) for p in dict.fromkeys(cell.precision for cell in cells)}
    copied = copy(world.device)
    predictions = predict(steps, products, copied)
    if world.is_main:
        show_predictions(predictions)
    sides |= {f"matrix product {precision}": product for precision, product in products.items()}
    sides["copy"] = copied
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
            row["step_seconds"] = cell.batch * world.size / row["images_per_second"]
            row["predicted"] = vars(predictions[name])
            joules = statistics.median(energy[name][1:])
            if not math.isnan(joules):
                row["joules_per_image"] = joules
            top = statistics.median(rates[f"matrix product {cell.precision}"])
            row["mfu"] = row["images_per_second"] / world.size * step.flop_per_image / top
            if step.peak_bytes is not None:
                row["peak_memory_bytes"] = step.peak_bytes
        elif name.startswith("plain"):
            row = {"name": name, "world_size": world.size, **rounds.summary(values, reference=speed)}
        else:
            unit = "bytes_per_second" if name == "copy" else "flop_per_second"
            row = {"name": name, **rounds.summary(values, unit, speed)}
        rows.append(row)
    if options.profile:
        name, (_, step) = next(iter(steps.items()))
        step.profile(options.profile)
    return rows + [{"name": name, "left_out": reason} for name, reason in left_out.items()]


def build_steps(
    cells: list[Cell], options: argparse.Namespace, world: World
) -> tuple[dict[str, tuple[Cell, Step]], dict[str, str]]:
    """The steps that can be taken, each after a first one, by name; and why others cannot.

    Several ranks must take the same: an error of one ends them all.

    Raises:
        UserError: none can be taken.
    """
    if any(options.compile):
        import torch._dynamo.config as dynamo

        # Each cell is compiled for its own sizes, as a training is, not for any batch once a second one has been met.
        dynamo.automatic_dynamic_shapes = False
        dynamo.recompile_limit = 8 * len(cells)
    joules = energy_meter(world.device) or (lambda: math.nan)
    directory = ensure(DataConfig(source=options.data), lambda line: None)[0] if options.data else None
    steps: dict[str, tuple[Cell, Step]] = {}
    left_out: dict[str, str] = {}
    for cell in cells:
        sources = {"": cached(cell, world)}
        if directory is not None:
            sources[f" from {options.loader}"] = loaded(cell, world, directory, options.loader)
        for suffix, batches in sources.items():
            name = cell.name + suffix
            try:
                step = Step(cell, world, batches, joules)
                step.run(step.first_steps)
                if len(cells) == 1 and not steps:  # otherwise others lie in the same memory
                    step.measure_peak(world)
                steps[name] = cell, step
            except (UserError, torch.OutOfMemoryError) as error:
                if world.size > 1:
                    raise
                left_out[name] = str(error).splitlines()[0]
                print(f"{name} is left out: {left_out[name]}", file=sys.stderr)
                step = None
            gc.collect()
    if not steps:
        raise UserError(next(iter(left_out.values())))
    return steps, left_out


def predict(
    steps: dict[str, tuple[Cell, Step]], products: dict[str, Callable[[], float]], copied: Callable[[], float]
) -> dict[str, Prediction]:
    """What each step should take, by the rates that the device reaches now, after a first try."""
    rates = {name: [rate() for _ in range(2)][-1] for name, rate in {**products, "copy": copied}.items()}
    return {
        name: predicted(step.layers, cell, rates[cell.precision], rates["copy"]) for name, (cell, step) in steps.items()
    }


def show_predictions(predictions: dict[str, Prediction]) -> None:
    """Print a line for each step."""
    for name, step in predictions.items():
        print(
            f"{name:<44} predicted: {step.flop / 1e12:8.3f} TFLOP {step.bytes / 1e9:8.2f} GB {step.seconds * 1e3:10.2f} ms",
            flush=True,
        )


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
            step = (
                f"{row['step_seconds']:.4f} predicted {row['predicted']['seconds']:.4f}  " if "predicted" in row else ""
            )
            print(f"{row['name']:<44} {row['images_per_second']:9.1f} {span:>17} {mfu}  {step}{split}{joules}")
        elif "flop_per_second" in row:
            print(f"{row['name']:<44} {row['flop_per_second'] / 1e9:9.1f} GFLOP/s")
        elif "bytes_per_second" in row:
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
    both = {"true": True, "false": False}
    parser.add_argument("--fused", nargs="+", default=["true"], choices=list(both), help="model.fused (default: true)")
    parser.add_argument("--data", help="also end to end, from what vgg-ddp prepare takes")
    parser.add_argument("--loader", default="auto", help="with --data (default: auto)")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain fp32 loop")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round (default: 2)")
    parser.add_argument("--profile", type=Path, help="write a trace of the first cell to this folder")
    parser.add_argument(
        "--roofline", type=command.result_file, help="draw the first cell's layers under the measured peaks"
    )
    options = parser.parse_args()
    options.compile = [COMPILE[name] for name in options.compile]
    options.fused = [both[name] for name in options.fused]
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
