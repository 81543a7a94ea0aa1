"""The common recipe for CIFAR-10, in a plain torch loop, with ResNet-18 or VGG-16: accuracy against seconds and PFLOP.

    python -m benchmarks.common_recipe --data SOURCE [--network resnet18] [--epochs 30] [--precision fp32] [--json FILE]
    python -m benchmarks.common_recipe --data SOURCE --steps 20     images/s alone

SGD with a rate of 0.1, momentum 0.9 and weight decay 5e-4, batches of 128, half a cosine from the first step to the last,
flips, crops of images padded by four zeros; fp32. The networks are torchvision's: its ResNet-18 (He et al., CVPR 2016) with
the first layer that small images need, 3 x 3 without a stride and no pool behind it; and its VGG-16 with batch norm, and one
linear layer.

5,000 training images are held out, drawn by the seed, and evaluated after each epoch. The seconds include augmentation
and steps, but not loading the images, these evaluations, or building the network. PFLOP are those of forward and
backward, as torch counts them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.airbench import SIDE, Images, crops, load
from benchmarks.measurement import command
from benchmarks.measurement.device_speed import wait_for
from benchmarks.measurement.training_cost import flop_of_network
from vgg_ddp.distributed.world import device_of
from vgg_ddp.errors import UserError

RATE, MOMENTUM, DECAY, BATCH, MOVED = 0.1, 0.9, 5e-4, 128, 4
WARM_UP = 5  # steps in which algorithms are still being chosen: images/s exclude them
HELD_OUT, LOOKED_AT = 5000, 1000  # images held out, and how many of them go into one forward pass


def network_of(name: str, classes: int) -> nn.Module:
    """ResNet-18 for small images, or VGG-16's convolutions before a linear layer; torchvision's initial weights."""
    if name == "vgg16":
        features = torchvision.models.vgg16_bn(num_classes=classes).features
        return nn.Sequential(features, nn.Flatten(), nn.Linear(512, classes))
    network = torchvision.models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def pflop_of_image(name: str, classes: int) -> float:
    """PFLOP of one image, forward and backward, counted on the meta device."""
    with torch.device("meta"):
        network = network_of(name, classes)
    return flop_of_network(network, SIDE) / 1e15


@dataclass(frozen=True)
class Recipe:
    """What is trained, and for how long.

    Attributes:
        steps: end after so many, if the epochs have more; None: train all epochs.
    """

    network: str
    epochs: int
    precision: str
    seed: int
    steps: int | None


def train(images: Images, classes: int, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """After each epoch, and at the end: steps, seconds, images/s since the last, PFLOP and the accuracy on images held out.

    The first steps count towards the seconds, but not towards the images/s.
    """
    device = images.pixels.device
    torch.manual_seed(recipe.seed)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    network = network_of(recipe.network, classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    shuffled = torch.randperm(len(images.pixels), generator=generator, device=device)
    held_out, trained = shuffled.split([HELD_OUT, len(shuffled) - HELD_OUT])
    per_epoch = len(trained) // BATCH
    total = per_epoch * recipe.epochs
    last = min(total, recipe.steps or total)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    warm = min(WARM_UP, per_epoch - 1, last - 1)
    cost, step, seconds = pflop_of_image(recipe.network, classes), 0, 0.0
    while step < last:
        begun = since = time.perf_counter()
        first = step
        order = trained[torch.randperm(len(trained), generator=generator, device=device)]
        for batch in order.split(BATCH)[: min(per_epoch, last - step)]:
            flip = torch.rand(BATCH, generator=generator, device=device) < 0.5
            pixels = crops(images.pixels[batch].float(), MOVED, flip, generator, "constant")
            with autocast:
                logits = network(pixels.contiguous(memory_format=torch.channels_last))
            functional.cross_entropy(logits.float(), images.labels[batch]).backward()
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == warm:
                wait_for(device)
                since, first = time.perf_counter(), step
        wait_for(device)
        ended = time.perf_counter()
        seconds += ended - begun
        with autocast:
            found = accuracy(network, images.pixels[held_out], images.labels[held_out])
        yield {
            "epoch": step / per_epoch,
            "steps": step,
            "seconds": seconds,
            "images_per_second": (step - first) * BATCH / (ended - since),
            "pflop": step * BATCH * cost,
            "accuracy": found,
        }


@torch.inference_mode()
def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of the images that is answered right."""
    network.eval()
    right = [
        (network(part.float().contiguous(memory_format=torch.channels_last)).argmax(1) == own).sum()
        for part, own in zip(pixels.split(LOOKED_AT), labels.split(LOOKED_AT))
    ]
    network.train()
    return float(sum(right)) / len(labels)


def main() -> None:
    """Train, print and keep a row for each epoch.

    Raises:
        UserError: the images do not fit the networks, or there are too few.
    """
    parser = command.parser("common_recipe", __doc__, in_rounds=False, compared=False)
    parser.add_argument("--data", required=True, help="a data source, as data.source takes it")
    parser.add_argument("--directory", default="datasets", help="where prepared data sets are (default: datasets)")
    parser.add_argument("--network", choices=["resnet18", "vgg16"], default="resnet18", help="(default: resnet18)")
    parser.add_argument("--epochs", type=command.count, default=30, help="(default: 30)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="(default: fp32)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--steps", type=command.count, help="end after this many steps, for images/s alone (default: train to the end)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    images, _, classes = load(options.data, options.directory, device_of(0))
    if len(images.pixels) < HELD_OUT + BATCH:
        raise UserError(
            f"{len(images.pixels)} training images are fewer than the {HELD_OUT} held out and a batch of {BATCH}"
        )
    rows = []
    recipe = Recipe(options.network, options.epochs, options.precision, options.seed, options.steps)
    for found in train(images, classes, recipe):
        rows.append({"name": f"epoch {found['epoch']:g}", **found})
        print(
            f"epoch {found['epoch']:5.2f}  {found['seconds']:8.1f} s  {found['images_per_second']:7.0f} images/s  "
            f"{found['pflop']:.3f} PFLOP  held out {found['accuracy']:.2%}",
            flush=True,
        )
    command.write(options, rows, network=options.network, precision=options.precision, seed=options.seed)


if __name__ == "__main__":
    command.run(main)
