"""Predicted efficiency on machines that are not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measurement.flops import Layer
from benchmarks.scaling_model.device import Device, LayerSeconds, roofline
from benchmarks.scaling_model.exchange import (
    Exchange,
    HalfPrecision,
    ModelParallelClassifier,
    OuterSteps,
    Plain,
    PowerSGD,
)
from benchmarks.scaling_model.link import ALGORITHMS, Cluster
from benchmarks.scaling_model.step import Step, step, update_seconds

EXCHANGES: tuple[Exchange, ...] = (Plain(), HalfPrecision(), PowerSGD(), OuterSteps(), ModelParallelClassifier())


@dataclass(frozen=True)
class Case:
    """A network and its batches.

    Attributes:
        batch: images of each device where it stays the same (weak scaling).
        global_batch: of all devices together where that stays the same (strong scaling).
        measured_rate: images/s of one device at `batch`, if measured; the roofline gives the rest.
    """

    name: str
    network: Sequence[Layer]
    batch: int
    global_batch: int
    measured_rate: float | None = None

    def layer_seconds(self, device: Device, batch: int) -> LayerSeconds:
        """Of the roofline, scaled to the measured rate if there is one."""
        seconds = roofline(self.network, batch, device)
        if self.measured_rate is None:
            return seconds
        modelled = sum(map(sum, roofline(self.network, self.batch, device)))
        measured = self.batch / self.measured_rate - update_seconds(self.network, device)
        return [(forward * measured / modelled, backward * measured / modelled) for forward, backward in seconds]

    def step(self, device: Device, batch: int, cluster: Cluster, devices: int, exchange: Exchange) -> Step:
        """A step of `devices` devices with `batch` images each."""
        update = update_seconds(self.network, device)
        return step(self.network, self.layer_seconds(device, batch), update, batch, device, cluster, devices, exchange)


def predict(
    cases: Sequence[Case], device: Device, clusters: dict[str, Cluster], counts: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each case, scaling, cluster, communication and number of devices.

    "efficiency" is images/s over the number of devices times those of one device: with the same local batch in weak scaling,
    with the global batch (as if it had the memory) in strong scaling, which so includes the cost of a small local batch.
    """
    rows = []
    for case in cases:
        for name, cluster in clusters.items():
            for kind, alone in (("weak", case.batch), ("strong", case.global_batch)):
                single = alone / case.step(device, alone, cluster, 1, Plain()).seconds
                for exchange in EXCHANGES:
                    for count in counts:
                        batch = case.batch if kind == "weak" else case.global_batch // count
                        if batch == 0:
                            continue
                        modelled = case.step(device, batch, cluster, count, exchange)
                        rate = count * batch / modelled.seconds
                        rows.append(
                            {
                                "name": f"{case.name}, {kind}, {name}, {exchange.name}, {count} GPUs",
                                "case": case.name,
                                "kind": kind,
                                "cluster": name,
                                "exchange": exchange.name,
                                "gpus": count,
                                "local_batch": batch,
                                "images_per_second": rate,
                                "efficiency": rate / (count * single),
                                **{f"{name}_seconds": seconds for name, seconds in asdict(modelled).items()},
                            }
                        )
    return rows


def all_reduces(clusters: dict[str, Cluster], counts: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of an all-reduce by cluster, size, devices and algorithm."""
    return [
        {
            "cluster": name,
            "bytes": size,
            "gpus": count,
            "algorithm": algorithm,
            "seconds": cluster.all_reduce(size, count, algorithm),
        }
        for name, cluster in clusters.items()
        for size in sizes
        for count in counts
        for algorithm in ALGORITHMS
    ]
