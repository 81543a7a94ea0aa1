"""Ways for the ranks to exchange gradients: the bytes of each bucket, and the work of compressing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.measurement.flops import Layer
from benchmarks.scaling_model.device import Device
from benchmarks.scaling_model.link import Cluster

Shape = tuple[int, ...]
FLOAT = 4  # bytes; DDP's gradients are fp32, whatever autocast multiplies in


@dataclass(frozen=True)
class Piece:
    """One parameter's gradient, as a device holds it.

    Attributes:
        layer: index of the layer.
        group: over how many devices the parameter is cut; 1 where each device holds the whole.
    """

    layer: int
    shape: Shape
    group: int = 1

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Exchange(Protocol):
    """A way of communicating."""

    @property
    def name(self) -> str:
        """As the tables call it."""
        ...

    @property
    def every(self) -> int:
        """The steps between two exchanges, 1 for one in each."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether it runs during the backward pass."""
        ...

    def pieces(self, network: Sequence[Layer], devices: int) -> list[Piece]:
        """The gradients that a device must exchange, in the order of the modules."""
        ...

    def seconds(self, bucket: Sequence[Piece], cluster: Cluster, devices: int) -> float:
        """Seconds on the wire, for one bucket."""
        ...

    def work(self, bucket: Sequence[Piece], device: Device) -> float:
        """Seconds of extra work of the device for one bucket."""
        ...

    def activations(self, network: Sequence[Layer], batch: int, cluster: Cluster, devices: int) -> float:
        """Seconds of sending activations, which overlap with nothing."""
        ...


@dataclass(frozen=True)
class Plain:
    """Gradients as they are."""

    name: str = "plain"
    every: int = 1
    overlaps: bool = True

    def pieces(self, network: Sequence[Layer], devices: int) -> list[Piece]:
        """Every gradient, whole."""
        return [Piece(number, shape) for number, layer in enumerate(network) for shape in layer.parameters]

    def messages(self, bucket: Sequence[Piece]) -> list[float]:
        """Bytes of the all-reduces that one bucket needs, one after the other."""
        return [FLOAT * _count(bucket)]

    def seconds(self, bucket: Sequence[Piece], cluster: Cluster, devices: int) -> float:
        """Seconds of the all-reduces, one after the other."""
        return sum(cluster.quickest(size, devices) for size in self.messages(bucket))

    def work(self, bucket: Sequence[Piece], device: Device) -> float:
        """No extra work."""
        return 0.0

    def activations(self, network: Sequence[Layer], batch: int, cluster: Cluster, devices: int) -> float:
        """No activations are sent."""
        return 0.0


@dataclass(frozen=True)
class HalfPrecision(Plain):
    """Gradients cast to bf16 or fp16 (torch's `bf16_compress_hook`, `fp16_compress_hook`)."""

    name: str = "bf16"

    def messages(self, bucket: Sequence[Piece]) -> list[float]:
        """Half the bytes."""
        return [FLOAT / 2 * _count(bucket)]

    def work(self, bucket: Sequence[Piece], device: Device) -> float:
        """Casting to half precision and back."""
        return 2 * 1.5 * FLOAT * _count(bucket) / (device.bandwidth * device.achieved)  # there and back: read and write


@dataclass(frozen=True)
class PowerSGD(Plain):
    """Low-rank gradients (Vogels, Karimireddy & Jaggi 2019), as torch's `powerSGD_hook` sends them.

    For an m x n matrix, P (m x rank) is summed and orthogonalised, then Q (n x rank) is summed. Gradients of which this
    would not halve the size are sent uncompressed, in a message of their own.
    """

    name: str = "PowerSGD rank 2"
    rank: int = 2

    def compresses(self, piece: Piece) -> bool:
        """Whether this gradient is sent in low rank."""
        rows, columns = piece.shape[0], math.prod(piece.shape[1:])
        return len(piece.shape) > 1 and 2 * self.rank * (rows + columns) < rows * columns

    def messages(self, bucket: Sequence[Piece]) -> list[float]:
        """The uncompressed gradients, then P, then Q."""
        matrices = [piece for piece in bucket if self.compresses(piece)]
        rest = [piece for piece in bucket if not self.compresses(piece)]
        sizes = [
            FLOAT * _count(rest),
            FLOAT * self.rank * sum(piece.shape[0] for piece in matrices),
            FLOAT * self.rank * sum(math.prod(piece.shape[1:]) for piece in matrices),
        ]
        return [size for size in sizes if size]

    def work(self, bucket: Sequence[Piece], device: Device) -> float:
        """Three thin products that each read or write the matrix, and the error kept for the next step, read and written."""
        matrices = [piece for piece in bucket if self.compresses(piece)]
        return 6 * FLOAT * _count(matrices) / (device.bandwidth * device.achieved)


@dataclass(frozen=True)
class OuterSteps(Plain):
    """Every rank trains by itself for `every` steps; then their weights are averaged (Stich 2019; Douillard et al. 2023)."""

    name: str = "every 32 steps"
    every: int = 32
    overlaps: bool = False


@dataclass(frozen=True)
class ModelParallelClassifier(Plain):
    """The classifier's layers are cut over a group of devices, the rest is data parallel (Krizhevsky 2014).

    Each device holds 1 / `group` of the classifier's weights and computes its columns for the images of the whole group:
    the same arithmetic. The images' features are gathered over the group before each layer and their gradients scattered
    back after it; the gradients of a share are summed over the other groups alone.
    """

    name: str = "classifier over 32"
    group: int = 32
    value_bytes: int = 2

    def pieces(self, network: Sequence[Layer], devices: int) -> list[Piece]:
        """Every gradient; for the classifier's parameters only a share of their rows."""
        group = min(self.group, devices)
        return [
            Piece(number, (math.ceil(shape[0] / group), *shape[1:]), group)
            if layer.in_classifier
            else Piece(number, shape)
            for number, layer in enumerate(network)
            for shape in layer.parameters
        ]

    def seconds(self, bucket: Sequence[Piece], cluster: Cluster, devices: int) -> float:
        """Seconds of an all-reduce; for parameters that are cut, over the other groups alone."""
        (group,) = {piece.group for piece in bucket}
        if group == 1:
            return super().seconds(bucket, cluster, devices)
        return cluster.all_reduce_shares(FLOAT * _count(bucket), devices, group)

    def activations(self, network: Sequence[Layer], batch: int, cluster: Cluster, devices: int) -> float:
        """Seconds of gathering the inputs of each classifier layer, and of scattering their gradients."""
        seconds = 0.0
        for layer in network:
            if layer.in_classifier and layer.parameters:
                inputs = layer.values - layer.outputs
                seconds += 2 * cluster.gather(self.value_bytes * batch * inputs, min(self.group, devices))
        return seconds


def _count(bucket: Sequence[Piece]) -> int:
    return sum(piece.count for piece in bucket)
