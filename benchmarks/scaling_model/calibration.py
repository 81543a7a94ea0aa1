"""The model brought to a machine at hand: what it measures of one rank and of the link, and what it then says of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from benchmarks.measurement.arithmetic import Layer
from benchmarks.scaling_model.device import Device, LayerSeconds, roofline, scaled
from benchmarks.scaling_model.exchange import Plain
from benchmarks.scaling_model.link import Cluster, Link, Protocol
from benchmarks.scaling_model.step import Step, step

Parts = Mapping[str, float]


def fit_link(seconds: Mapping[int, float], name: str) -> Link:
    """Latency and bandwidth of a link from all-reduces of several sizes (bytes) between two ranks.

    With two ranks, two steps each carry half of the message: t = 2 latency + size / bandwidth. Least squares of the
    relative error, neither below 0.
    """
    sizes, times = np.array(list(seconds), dtype=float), np.array(list(seconds.values()))
    (constant, slope), _ = nnls(np.stack([1 / times, sizes / times], axis=1), np.ones_like(times))
    if slope == 0:
        raise ValueError(f"all-reduces of {sizes.tolist()} bytes took {times.tolist()} s: no time for the bytes")
    return Link(name, 1 / slope, (Protocol(constant / 2, constant / 2, start=0.0),), "measured here between two ranks")


@dataclass(frozen=True)
class Calibration:
    """What was measured, of which several ranks' steps are no part.

    Attributes:
        alone: seconds of "forward", "backward" and "update" of a rank that is alone, by its batch; two batches or more.
        crowd: how many times as long a rank takes while so many compute at once, without communication, by ranks.
        link: between two ranks.
        cores: that the ranks have; None where each has a device of its own.
    """

    network: Sequence[Layer]
    device: Device
    alone: Mapping[int, Parts]
    crowd: Mapping[int, float]
    link: Link
    cores: int | None

    def cluster(self, ranks: int) -> Cluster:
        """On a CPU the cores that compute also copy: nothing overlaps, and ranks that share a core wait for it."""
        if self.cores is None:
            return Cluster(self.link, self.link, ranks, algorithms=("ring",))
        crowding = max(1.0, ranks / self.cores)
        return Cluster(self.link, self.link, ranks, overlaps=False, crowding=crowding, algorithms=("ring",))

    def part(self, name: str, batch: int) -> float:
        """Seconds of a part of the step at any batch: a line through those measured."""
        slope, constant = np.polyfit(list(self.alone), [parts[name] for parts in self.alone.values()], 1)
        return float(slope * batch + constant)

    def layers(self, batch: int) -> LayerSeconds:
        return scaled(
            roofline(self.network, batch, self.device), self.part("forward", batch), self.part("backward", batch)
        )

    def predict(self, ranks: int, batch: int) -> Step:
        """A step of `ranks` ranks with `batch` images each."""
        slower = self.crowd.get(ranks, 1.0)
        seconds = [(forward * slower, backward * slower) for forward, backward in self.layers(batch)]
        update = self.part("update", batch) * slower
        return step(self.network, seconds, update, batch, self.device, self.cluster(ranks), ranks, Plain())
