"""The time that a device takes for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurement.flops import Layer

LayerSeconds = list[tuple[float, float]]


@dataclass(frozen=True)
class Device:
    """A device by what its maker states.

    Attributes:
        flops: peak of the arithmetic in use, FLOP/s.
        bandwidth: of its memory, bytes/s.
        achieved: share of both that training reaches.
        value_bytes: of an activation.
        source: where the figures are from.
    """

    name: str
    flops: float
    bandwidth: float
    achieved: float
    value_bytes: int
    source: str


# The share is an assumption where it is not measured: half of the peak is more than most published convolutional training
# reaches. A faster device leaves less time to hide communication in, so a high share makes predictions of scaling cautious.
ASSUMED_SHARE = 0.5
DEVICES = {
    "a100": Device(
        "A100 SXM4 80 GB, bf16", 312e12, 2.039e12, ASSUMED_SHARE, 2, "NVIDIA A100 datasheet (dense); share assumed"
    ),
    "h100": Device(
        "H100 SXM5, bf16", 989.4e12, 3.35e12, ASSUMED_SHARE, 2, "NVIDIA H100 datasheet (dense); share assumed"
    ),
    "h200": Device(
        "H200 SXM5, bf16", 989.4e12, 4.8e12, ASSUMED_SHARE, 2, "NVIDIA H200 datasheet (dense); share assumed"
    ),
}


def roofline(network: Sequence[Layer], batch: int, device: Device) -> LayerSeconds:
    """Seconds of forward and backward of each layer for `batch` images: the longer of its arithmetic and its traffic.

    The roofline model (Williams, Waterman & Patterson, CACM 2009). Backward reads what forward read and wrote, and the
    gradient of the output, and writes that of the input: twice the forward pass's traffic. The weights are read once in
    forward; in backward they are read once and their gradient is written.
    """
    seconds = []
    for layer in network:
        traffic = device.value_bytes * (batch * layer.values + layer.weights)
        memory = traffic / (device.bandwidth * device.achieved)
        forward = batch * layer.forward_flops / (device.flops * device.achieved)
        backward = batch * layer.backward_flops / (device.flops * device.achieved)
        seconds.append((max(forward, memory), max(backward, 2 * memory)))
    return seconds


def scaled(seconds: LayerSeconds, forward: float, backward: float) -> LayerSeconds:
    """The same layers with their sums brought to a measured forward and backward pass."""
    sums = [sum(column) for column in zip(*seconds)]
    return [(f * forward / sums[0], b * backward / sums[1]) for f, b in seconds]


def scaled_to_step(seconds: LayerSeconds, step: float) -> LayerSeconds:
    """The same layers with their sum brought to a measured step, where forward and backward are not known apart."""
    factor = step / sum(forward + backward for forward, backward in seconds)
    return [(forward * factor, backward * factor) for forward, backward in seconds]
