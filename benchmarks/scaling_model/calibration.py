"""The model calibrated on a machine at hand: by one rank and the link, to predict steps of several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from benchmarks.measurement.flops import Layer
from benchmarks.scaling_model.device import Device, LayerSeconds, roofline, scaled
from benchmarks.scaling_model.exchange import Plain
from benchmarks.scaling_model.link import Cluster, Link, Protocol
from benchmarks.scaling_model.step import Step, step

PhaseSeconds = Mapping[str, float]


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
    """What was measured, without any step of several ranks that communicate.

    Attributes:
        alone: seconds of "forward", "backward" and "update" of a rank that is alone, by its batch; two batches or more.
        contention: by number of ranks, how many times as long a rank takes while so many compute at the same time without
            communication: they share caches, memory and clock.
        link: between two ranks.
        cores: that the ranks have; None where each has a device of its own.
    """

    network: Sequence[Layer]
    device: Device
    alone: Mapping[int, PhaseSeconds]
    contention: Mapping[int, float]
    link: Link
    cores: int | None

    def cluster(self, ranks: int) -> Cluster:
        """The ranks as one host. On a CPU the cores that compute also copy: nothing overlaps, and ranks may share a core."""
        if self.cores is None:
            return Cluster(self.link, self.link, ranks, algorithms=("ring",))
        per_core = max(1.0, ranks / self.cores)
        return Cluster(self.link, self.link, ranks, overlaps=False, ranks_per_core=per_core, algorithms=("ring",))

    def phase(self, name: str, batch: int) -> float:
        """Seconds of a phase of the step at any batch: a line through those measured."""
        slope, constant = np.polyfit(list(self.alone), [seconds[name] for seconds in self.alone.values()], 1)
        return float(slope * batch + constant)

    def layers(self, batch: int) -> LayerSeconds:
        """Seconds of each layer on one rank that is alone."""
        return scaled(
            roofline(self.network, batch, self.device), self.phase("forward", batch), self.phase("backward", batch)
        )

    def predict(self, ranks: int, batch: int) -> Step:
        """A step of `ranks` ranks with `batch` images each."""
        slower = self.contention.get(ranks, 1.0)
        seconds = [(forward * slower, backward * slower) for forward, backward in self.layers(batch)]
        update = self.phase("update", batch) * slower
        return step(self.network, seconds, update, batch, self.device, self.cluster(ranks), ranks, Plain())
