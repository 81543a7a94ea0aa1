"""Images per second of the training step over a grid of settings, where its time goes, and how near it is to the peak.

    python -m benchmarks.throughput [--networks vgg16 ...] [--precisions bf16 ...] [--data SOURCE] [--json FILE]

The cells of the grid are measured alternately, together with a plain fp32 NCHW loop over torchvision's layers, on one
batch in memory; with `--data` also from a prepared data set, end to end. Before the first round it predicts the time of
each step: its arithmetic and its traffic, layer by layer, at the rates of a large matrix product and a large copy. MFU
is the step's FLOP/s over those of a large matrix product of the same precision in the same rounds; joules are shown
where the device counts them. A cell that does not fit into memory, or cannot be compiled, is left out with a message.
`torchrun` starts it on several ranks; the time of communication is then that of a step with the reduction of gradients
less that of one without.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import chosen_precision, copy, matrix_product, reference
from benchmarks.measurement.energy import meter as energy_meter
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.plain import PlainStep
from benchmarks.throughput.prediction import draw_roofline, predict, show_predictions
from benchmarks.throughput.step import Step, cached, loaded
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.ensure import ensure
from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.errors import UserError

LAYOUTS = ("channels_last", "contiguous")
COMPILE = {"true": True, "false": False, "stages": "stages", "graph": "graph"}


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
    """The steps that can be measured, each already taken once, by name; and why the others cannot.

    All ranks must have the same steps, so an error on one rank ends them all.

    Raises:
        UserError: none can be taken.
    """
    if any(options.compile):
        import torch._dynamo.config as dynamo

        # Each cell is compiled for its own sizes, as a training is: no dynamic shapes from the second batch size on.
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
                if len(cells) == 1 and not steps:  # otherwise other cells use the same memory
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
    parser.add_argument("--image-sizes", nargs="+", type=command.count, default=[32], help="pixels (default: 32)")
    parser.add_argument(
        "--batches", nargs="+", type=command.count, default=[256], help="images of a rank's step (default: 256)"
    )
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
    parser.add_argument("--data", help="also measure end to end from this source, as vgg-ddp prepare takes it")
    parser.add_argument("--loader", default="auto", help="with --data (default: auto)")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain fp32 loop")
    parser.add_argument("--steps", type=command.count, default=2, help="steps in a round (default: 2)")
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
