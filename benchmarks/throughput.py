"""Images per second of the training step, against a plain fp32 NCHW loop on the same batch in the same process.

    python -m benchmarks.throughput [--network vgg16] [--batch 256] [--precision bf16] [--rounds 5] [--json FILE]

Both sides train on one batch that lies in memory; the rounds alternate between them, so that what else the machine does
falls on both. The first round of each is warm-up and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from vgg_ddp import builders, engines
from vgg_ddp.config import Config
from vgg_ddp.config.schema import DataConfig
from vgg_ddp.distributed import World, device_of
from vgg_ddp.environment import devices
from vgg_ddp.memory import keep_freed_memory
from vgg_ddp.precision import set_arithmetic
from vgg_ddp.preprocess import Preprocess

Step = Callable[[], None]


def our_step(config: Config, images: torch.Tensor, labels: torch.Tensor, world: World) -> Step:
    """The step of the training loop, from stored pixels to the update."""
    set_arithmetic(config)
    network = builders.build_network(config, 10, world.device)
    preprocess = Preprocess([128.0] * 3, [64.0] * 3, config.channels_last).to(world.device)
    engine = engines.build(config, network, world)

    def step() -> None:
        loss, _ = engine.forward(preprocess(images), labels, last=True)
        engine.backward(loss)
        engine.step()

    return step


def plain_step(config: Config, images: torch.Tensor, labels: torch.Tensor, world: World) -> Step:
    """What a short script does: torchvision's layers and one linear layer, fp32, contiguous NCHW, torch's SGD as it comes."""
    features = getattr(torchvision.models, f"{config.network}_bn")(weights=None).features
    width = 512 * (config.data.image_size // 32) ** 2
    network = nn.Sequential(features, nn.Flatten(), nn.Linear(width, 10)).to(world.device)
    pixels = ((images.permute(0, 3, 1, 2).float() - 128.0) / 64.0).contiguous()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(network(pixels), labels).backward()
        optimizer.step()

    return step


def seconds(step: Step, steps: int, device: torch.device) -> float:
    """Wall seconds of `steps` steps, the device's work included."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of images per second: median, least and most over the rounds."""
    world = World(0, 1, 0, 1, device_of(0))
    torch.set_num_threads(options.threads)
    config = Config(
        network=options.network,
        batch=options.batch,
        precision=options.precision,
        data=DataConfig(image_size=options.image_size),
    )
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.image_size, options.image_size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(world.device)
    labels = torch.randint(0, 10, (options.batch,), generator=generator).to(world.device)
    sides = {
        f"vgg_ddp {options.precision}": our_step(config, images, labels, world),
        "plain fp32 NCHW": plain_step(config, images, labels, world),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, step in sides.items():
            rate = options.batch * options.steps / seconds(step, options.steps, world.device)
            if number:
                rates[name].append(rate)
    return [
        {
            "name": name,
            "network": options.network,
            "batch": options.batch,
            "image_size": options.image_size,
            "images_per_second": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "rounds": len(values),
        }
        for name, values in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--network", default="vgg16", choices=["vgg11", "vgg13", "vgg16", "vgg19"], help="(default: vgg16)"
    )
    parser.add_argument("--batch", type=int, default=256, help="images in a step (default: 256)")
    parser.add_argument("--image-size", type=int, default=32, help="pixels (default: 32)")
    parser.add_argument(
        "--precision", default="bf16", choices=["fp32", "tf32", "bf16", "fp16"], help="ours (default: bf16)"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps in a round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    keep_freed_memory()
    rows = measure(options)
    for row in rows:
        print(f"{row['name']:<18} {row['images_per_second']:8.1f} images/s  ({row['least']:.1f} to {row['most']:.1f})")
    print(f"ratio {rows[0]['images_per_second'] / rows[1]['images_per_second']:.2f}")
    if options.json:
        machine = {
            "devices": devices(),
            "threads": options.threads,
            "system": platform.platform(),
            "torch": torch.__version__,
        }
        command = " ".join(["python -m benchmarks.throughput", *sys.argv[1:]])
        options.json.write_text(json.dumps({"machine": machine, "command": command, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
