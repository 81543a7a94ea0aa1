"""Published measurements beside the model's predictions. Nothing here was fitted to the points it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scaling_model.device import Device, roofline, scaled_to_step
from benchmarks.scaling_model.exchange import FLOAT, Plain
from benchmarks.scaling_model.link import ETHERNET_25, PCI_3, Cluster
from benchmarks.scaling_model.network import layers
from benchmarks.scaling_model.step import MIB, Buckets, step


@dataclass(frozen=True)
class Point:
    """A published measurement beside the model's prediction.

    Attributes:
        measured, predicted: scaling efficiency, or speed-up where the name says so.
        assumptions: what the prediction rests on, with sources.
    """

    name: str
    source: str
    measured: float
    predicted: float
    assumptions: tuple[str, ...]

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted / self.measured - 1


P100 = Device(
    "P100 SXM2, fp32",
    10.6e12,
    732e9,
    1.0,
    4,
    "NVIDIA P100 datasheet; only the layers' shares of a measured step use it",
)
P100_IMAGES_PER_SECOND = 154.0  # VGG-16, batch 64, TensorFlow, May 2017
HOROVOD_BUCKET = 64 * MIB  # fusion threshold, its default


def horovod(devices: int, measured: float, source: str) -> Point:
    """VGG-16 by Horovod on hosts with 4 Pascal GPUs each, 25 Gbit/s, batch 64 per GPU."""
    network = layers("D", batch_norm=False, head="paper", num_classes=1000, image_size=224)
    seconds = scaled_to_step(roofline(network, 64, P100), 64 / P100_IMAGES_PER_SECOND)
    cluster = Cluster(inside=PCI_3, between=ETHERNET_25, devices_per_host=4, algorithms=("ring",))
    buckets = Buckets(HOROVOD_BUCKET, HOROVOD_BUCKET)
    one, many = (step(network, seconds, 0.0, 64, P100, cluster, n, Plain(), buckets) for n in (1, devices))
    return Point(
        f"Horovod, VGG-16 on {devices} GPUs: efficiency",
        source,
        measured,
        one.seconds / many.seconds,
        (
            "154 images/s on one GPU at batch 64 (TensorFlow performance benchmarks, DGX-1, P100, May 2017); the Horovod "
            "paper names neither the GPU but for 'Pascal' nor its images/s",
            "flat ring of NCCL 2.0, which had no trees; latencies of NCCL's tuning model (src/graph/tuning.cc)",
            "25 Gbit/s RoCE v2 at an MTU of 1,500: 2.89 GB/s usable, shared by the 4 GPUs of a host",
            "fused into 64 MiB, Horovod's default; no further delay of its coordinator",
        ),
    )


WEEK = 7 * 24 * 3600


def simonyan_zisserman() -> Point:
    """VGG-16's authors: 3.75 times on four Titan Blacks (section 3.3), synchronous, batch 256 cut into four.

    The paper gives the step as well: 370,000 steps in two to three weeks on the four cards. What of it was communication
    follows from the size of the network and the bus; the rest is a quarter of what one card would take.
    """
    weights = sum(layer.weights for layer in layers("D", batch_norm=False, head="paper", num_classes=1000))
    step_on_four = 2.5 * WEEK / 370_000
    levels = 2  # of a binary tree over four: gradients up, weights down, each level after the other
    communication = 2 * levels * FLOAT * weights / PCI_3.bandwidth
    return Point(
        "Simonyan & Zisserman, VGG-16 on 4 Titan Black: speed-up",
        "Simonyan & Zisserman, ICLR 2015, section 3.3",
        3.75,
        4 * (step_on_four - communication) / step_on_four,
        (
            "370,000 steps (section 3.1) in two to three weeks (section 3.3): 4.1 s a step at two and a half",
            "Caffe's way: a binary tree up and down over PCI Express 3.0, one level after the other, nothing overlapped; the "
            "paper does not say how its own branch of Caffe did it",
            "12 GB/s of PCI Express 3.0 x16 (NCCL src/graph/topo.h)",
            "one card computes 256 images in four times the time of 64",
        ),
    )


def points() -> list[Point]:
    """All of them."""
    return [
        horovod(512, 0.68, "Sergeev & Del Balso 2018, arXiv 1802.05799; Horovod docs/benchmarks.rst: 128 hosts"),
        horovod(128, 0.79, "Horovod's README of 2017: 32 hosts"),
        simonyan_zisserman(),
    ]
