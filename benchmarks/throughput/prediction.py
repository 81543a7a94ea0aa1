"""What a step should take, from the rates of a large matrix product and a large copy; and the roofline's picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from benchmarks.measurement.device_speed import DTYPES
from benchmarks.measurement.flops import Layer, layers
from benchmarks.measurement.step import CLASSES
from benchmarks.scaling_model.device import Device, roofline
from benchmarks.throughput.cell import Cell
from benchmarks.throughput.step import Step
from vgg_ddp.distributed.world import World
from vgg_ddp.training import parts

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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


def predict(
    steps: dict[str, tuple[Cell, Step]], products: dict[str, Callable[[], float]], copied: Callable[[], float]
) -> dict[str, Prediction]:
    """The prediction for each step, from the rates that the device reaches now, after one warm-up."""
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
