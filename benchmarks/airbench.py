"""airbench94_muon, reimplemented from its authors' description, on images of 32 pixels: a baseline for the recipes.

    python -m benchmarks.airbench --data SOURCE [--seeds 3] [--epochs 8] [--compile] [--json FILE]

Keller Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498),
github.com/KellerJordan/cifar10-airbench: 2.6 s on an A100 with the original images. A whitened, frozen 2x2 convolution,
three groups of two convolutions (64, 256, 256), GELU, the pool before the first of two frozen-scale norms; Muon on the
convolutions, SGD with Nesterov momentum on biases and head; batches of 2,000, alternating flips, crops moved by two
pixels; all rates fall linearly to zero. It trains on the whole training set, and evaluates the test images once, at the
end. The seconds run from the initial weights to the trained ones, without loading the images.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measurement import command
from benchmarks.measurement.device_speed import wait_for
from benchmarks.measurement.rounds import mean_and_deviation
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.distributed.world import World, device_of
from vgg_ddp.errors import UserError
from vgg_ddp.loaders.resident import resident_pixels
from vgg_ddp.optim.muon import newton_schulz

BATCH, SIDE = 2000, 32
FILTERS = 24  # of the whitened layer: 2 x 2 x 3 directions in both signs
WIDTHS = (64, 256, 256)
BIAS_RATE, HEAD_RATE, MUON_RATE = 0.053, 0.67, 0.24  # all but Muon's are for a loss that is summed over the batch
MOMENTUM, MUON_MOMENTUM, DECAY = 0.85, 0.6, 2e-6 * BATCH
WHITEN_BIAS_EPOCHS, SMOOTHING, MOVED = 3, 0.2, 2
ITERATIONS = 3  # of Newton-Schulz


@dataclass(frozen=True)
class Images:
    """A split on the device: normalised images [n, 3, 32, 32] and labels [n]."""

    pixels: Tensor
    labels: Tensor


class Group(nn.Module):
    """Convolution, pool, norm, GELU, convolution, norm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4) for _ in range(2))
        for convolution in (self.first, self.second):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[n, inputs, side, side] to [n, outputs, side // 2, side // 2]."""
        images = functional.gelu(self.norms[0](functional.max_pool2d(self.first(images), 2)))
        return functional.gelu(self.norms[1](self.second(images)))


class Network(nn.Module):
    """The whole network, whose first layer whitens patches of `images`."""

    def __init__(self, classes: int, images: Tensor) -> None:
        super().__init__()
        self.whitening = nn.Parameter(whitening(images), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(FILTERS))
        widths = (FILTERS, *WIDTHS)
        self.groups = nn.ModuleList(Group(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, images: Tensor, train_whitening: bool = False) -> Tensor:
        """Logits [n, classes] of images [n, 3, 32, 32]; `train_whitening`: the first layer's bias gets a gradient."""
        bias = self.bias if train_whitening else self.bias.detach()
        images = functional.gelu(functional.conv2d(images, self.whitening, bias))
        for group in self.groups:
            images = group(images)
        return self.head(functional.max_pool2d(images, 3).flatten(1)) / WIDTHS[-1]


def whitening(images: Tensor) -> Tensor:
    """Filters [24, 3, 2, 2]: the eigenvectors of 2x2 patches, each over the root of its eigenvalue, in both signs."""
    patches = functional.unfold(images[:5000].float(), 2).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(-1, 3, 2, 2)
    return torch.cat([filters, -filters])


class Muon:
    """The convolutions' update: rescaled to a norm of sqrt(outputs), less `rate` times the orthogonalised momentum."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights, self._velocities = weights, [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the weights by their gradients."""
        for weight, velocity in zip(self._weights, self._velocities):
            assert weight.grad is not None
            velocity.mul_(MUON_MOMENTUM).add_(weight.grad)
            update = weight.grad.add(velocity, alpha=MUON_MOMENTUM).flatten(1)
            tall = update.shape[0] > update.shape[1]
            matrix = update.T if tall else update
            matrix = matrix.bfloat16() if matrix.is_cuda else matrix  # its norm may overflow float16
            polar = newton_schulz(matrix[None], ITERATIONS)[0]
            weight.mul_(math.sqrt(len(weight)) / weight.norm())
            weight.add_((polar.T if tall else polar).reshape(weight.shape).to(weight.dtype), alpha=-rate)


def crops(images: Tensor, moved: int, flip: Tensor, generator: torch.Generator, edges: str = "reflect") -> Tensor:
    """Each image mirrored where `flip` is true, and moved by up to `moved` pixels; `edges`: how torch pads them."""
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, [moved] * 4, mode=edges)
    places = torch.randint(2 * moved + 1, (2, len(images)), generator=generator, device=images.device)
    steps = torch.arange(SIDE, device=images.device)
    rows, columns = (place[:, None] + steps for place in places)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(images: Images, classes: int, epochs: float, seed: int, compiled: bool) -> tuple[Network, float]:
    """A trained network, and its seconds."""
    device = images.pixels.device
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    network = Network(classes, images.pixels).to(images.pixels).to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    filters = [parameter for parameter in network.groups.parameters() if parameter.dim() == 4]
    biases = [norm.bias for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    of_rates: list[tuple[Sequence[Tensor], float]] = [
        ([network.bias], BIAS_RATE),
        (biases, BIAS_RATE),
        ([network.head.weight], HEAD_RATE),
    ]
    groups = [{"params": held, "lr": rate, "weight_decay": DECAY / rate} for held, rate in of_rates]
    rest = torch.optim.SGD(groups, lr=BIAS_RATE, momentum=MOMENTUM, nesterov=True)
    muon = Muon(filters)
    called: Any = torch.compile(network) if compiled else network
    count = len(images.pixels)
    coins = torch.rand(count, generator=generator, device=device) < 0.5
    per_epoch = count // BATCH
    steps, whitened = math.ceil(epochs * per_epoch), WHITEN_BIAS_EPOCHS * per_epoch
    step = 0
    for epoch in range(math.ceil(epochs)):
        augmented = crops(images.pixels, MOVED, coins ^ bool(epoch % 2), generator)
        augmented = augmented.contiguous(memory_format=torch.channels_last)
        order = torch.randperm(count, generator=generator, device=device)
        for batch in order.split(BATCH)[: min(per_epoch, steps - step)]:
            pixels = augmented[batch].contiguous(memory_format=torch.channels_last)
            logits = called(pixels, train_whitening=step < whitened)
            loss = functional.cross_entropy(
                logits.float(), images.labels[batch], label_smoothing=SMOOTHING, reduction="sum"
            )
            loss.backward()
            left = 1 - step / steps
            for group, (_, rate), share in zip(rest.param_groups, of_rates, (1 - step / whitened, left, left)):
                group["lr"] = rate * max(0.0, share)
            rest.step()
            muon.step(MUON_RATE * left)
            network.zero_grad(set_to_none=True)
            step += 1
    wait_for(device)
    return network, time.perf_counter() - start


@torch.inference_mode()
def accuracies(network: Network, images: Images) -> tuple[float, float]:
    """Accuracy on the images as they are, and by six views (mirrored, moved by a pixel), as its authors evaluate it."""
    network.eval()
    right = torch.zeros(2)
    for pixels, labels in zip(images.pixels.split(BATCH), images.labels.split(BATCH)):
        padded = functional.pad(pixels, [1] * 4, mode="reflect")
        plain = network(pixels)
        views = [(plain + network(pixels.flip(3))) / 2]
        for first in (0, 2):
            moved = padded[:, :, first : first + SIDE, first : first + SIDE]
            views.append((network(moved) + network(moved.flip(3))) / 2)
        several = views[0] / 2 + (views[1] + views[2]) / 4
        right += torch.stack([(found.argmax(1) == labels).sum() for found in (plain, several)]).cpu()
    one, six = (right / len(images.labels)).tolist()
    return one, six


def load(source: str, directory: str, device: torch.device) -> tuple[Images, Images, int]:
    """Training and test images, normalised by the training images, and the number of classes.

    Raises:
        UserError: they are not of 32 x 32 pixels, or fewer than a batch.
    """
    config = DataConfig(source=source, directory=directory)
    dataset = Dataset(ensure(config, print)[0])
    world, found = World(0, 1, 0, 1, device), []
    for name in ("train", "test"):
        split = dataset.split(name)
        if split.uniform_shape != (SIDE, SIDE):
            raise UserError(f"this network is for images of {SIDE} x {SIDE} pixels; {dataset.name} has others")
        pixels = resident_pixels(split, config, world, sharded=False).permute(0, 3, 1, 2).float() / 255
        found.append((pixels, torch.from_numpy(split.labels).to(device)))
    if len(found[0][0]) < BATCH:
        raise UserError(f"{dataset.name} has fewer training images than a batch of {BATCH}")
    mean, deviation = (moment(dim=(0, 2, 3), keepdim=True) for moment in (found[0][0].mean, found[0][0].std))
    kind = torch.half if device.type == "cuda" else torch.float
    train, test = (Images(((pixels - mean) / deviation).to(kind), labels) for pixels, labels in found)
    return train, test, len(dataset.classes)


def main() -> None:
    """Train with each seed, print and keep the rows.

    Raises:
        UserError: the images do not fit the recipe.
    """
    parser = command.parser("airbench", __doc__, in_rounds=False, compared=False)
    parser.add_argument("--data", required=True, help="a data source, as data.source takes it")
    parser.add_argument("--directory", default="datasets", help="where prepared data sets are (default: datasets)")
    parser.add_argument("--seeds", type=command.count, default=3, help="trainings, with seeds 0, 1, ... (default: 3)")
    parser.add_argument("--epochs", type=float, default=8, help="(default: 8, as for 94 percent)")
    parser.add_argument("--compile", action="store_true", help="torch.compile it, within the first seed's seconds")
    options = parser.parse_args()
    if options.epochs <= 0:
        raise UserError("--epochs is above 0")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    images, test, classes = load(options.data, options.directory, device_of(0))
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        network, seconds = train(images, classes, options.epochs, seed, options.compile)
        one, six = accuracies(network, test)
        rows.append({"name": f"seed {seed}", "seconds": seconds, "test_accuracy": one, "test_accuracy_six_views": six})
        print(f"seed {seed}: {seconds:7.2f} s  test {one:.2%}, six views {six:.2%}", flush=True)
    later = [row["seconds"] for row in rows[1:]] or [rows[0]["seconds"]]
    means = {
        key: mean_and_deviation([row[key] for row in rows]) for key in ("test_accuracy", "test_accuracy_six_views")
    }
    print(
        f"{rows[0]['seconds']:.2f} s the first, then {statistics.mean(later):.2f} s; "
        f"test {means['test_accuracy']['mean']:.2%}, six views {means['test_accuracy_six_views']['mean']:.2%}"
    )
    command.write(
        options, rows, epochs=options.epochs, compiled=options.compile, later_seconds=mean_and_deviation(later), **means
    )


if __name__ == "__main__":
    command.run(main)
