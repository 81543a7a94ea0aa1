"""One training step on N devices: the buckets' schedule under the backward pass.

PyTorch's DistributedDataParallel (Li et al., VLDB 2020, section 3.2): gradients are put into buckets in the order in which
the backward pass makes them; a bucket is summed as soon as all its gradients are there, after the bucket before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurement.flops import Layer
from benchmarks.scaling_model.device import Device, LayerSeconds
from benchmarks.scaling_model.exchange import FLOAT, Exchange, Piece
from benchmarks.scaling_model.link import Cluster

MIB = 2**20


@dataclass(frozen=True)
class Buckets:
    """Bytes at which a bucket is closed: the first, and the others. DDP's defaults."""

    first: float = MIB
    others: float = 25 * MIB


@dataclass(frozen=True)
class Step:
    """The seconds of a step, by what they are spent on.

    Attributes:
        compute: forward, backward and update on the device.
        work: compressing and decompressing gradients.
        exposed: communication during which the device waits.
        communication: all of it, overlapped or not.
    """

    compute: float
    work: float
    exposed: float
    communication: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.work + self.exposed


def fill(pieces: Sequence[Piece], limits: Buckets) -> list[list[Piece]]:
    """Buckets of gradients, in the order of the backward pass: the last module's last parameter first.

    Within a layer the last parameter comes first, as DDP assumes. Parameters that are cut over devices share no bucket
    with whole ones.
    """
    buckets: list[list[Piece]] = []
    current: list[Piece] = []
    limit = limits.first
    for piece in reversed(pieces):
        if current and current[-1].group != piece.group:
            buckets.append(current)
            current = []
        current.append(piece)
        if FLOAT * sum(p.count for p in current) >= limit:
            buckets.append(current)
            current, limit = [], limits.others
    return [*buckets, current] if current else buckets


def step(
    network: Sequence[Layer],
    seconds: LayerSeconds,
    update: float,
    batch: int,
    device: Device,
    cluster: Cluster,
    devices: int,
    exchange: Exchange,
    limits: Buckets = Buckets(),
) -> Step:
    """A step of `devices` devices.

    Args:
        seconds: of each layer's forward and backward, on a single device.
        update: seconds of the optimizer.
        batch: images of one device.
        device: for the work of compressing, which its memory's bandwidth limits.
    """
    forward = sum(f for f, _ in seconds)
    backward = sum(b for _, b in seconds)
    compute = forward + backward + update
    if devices == 1:
        return Step(compute, 0.0, 0.0, 0.0)
    activations = exchange.activations(network, batch, cluster, devices)
    made = _gradient_ready(seconds)
    buckets = fill(exchange.pieces(network, devices), limits)
    wire = [exchange.seconds(bucket, cluster, devices) for bucket in buckets]
    if not (exchange.overlaps and cluster.overlaps):
        total = (sum(wire) + sum(exchange.work(bucket, device) for bucket in buckets)) / exchange.every + activations
        return Step(compute, 0.0, total, total)
    worked, free = 0.0, 0.0
    for bucket, on_wire in zip(buckets, wire):
        worked += exchange.work(bucket, device)
        ready = max(made[piece.layer] for piece in bucket) + worked
        free = max(ready, free) + on_wire
    exposed = max(0.0, free - (backward + worked))
    return Step(compute, worked, exposed + activations, sum(wire) + activations)


def _gradient_ready(seconds: LayerSeconds) -> list[float]:
    """Seconds from the start of the backward pass until each layer's gradients are there."""
    ready = [0.0] * len(seconds)
    clock = 0.0
    for number in reversed(range(len(seconds))):
        clock += seconds[number][1]
        ready[number] = clock
    return ready


def update_seconds(network: Sequence[Layer], device: Device) -> float:
    """Seconds of SGD with momentum: weight, momentum and gradient are read, weight and momentum written, in fp32."""
    return 5 * FLOAT * sum(layer.weights for layer in network) / (device.bandwidth * device.achieved)


def doublings(least: int, most: int) -> list[int]:
    """least, 2 x least ... up to `most`."""
    return [least * 2**n for n in range(int(math.log2(most / least)) + 1)]
