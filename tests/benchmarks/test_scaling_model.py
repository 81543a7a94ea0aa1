"""The model against other people's code and figures, and against invariants of any such model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_model import published
from benchmarks.scaling_model.calibration import Calibration, fit_link
from benchmarks.scaling_model.device import DEVICES, Device, roofline, scaled
from benchmarks.scaling_model.exchange import HalfPrecision, ModelParallelClassifier, OuterSteps, Piece, Plain, PowerSGD
from benchmarks.scaling_model.link import ALGORITHMS, CLUSTERS, Cluster, Link, Protocol, ethernet
from benchmarks.scaling_model.network import Layer, layers, training_flops
from benchmarks.scaling_model.prediction import Case, all_reduces, predict
from benchmarks.scaling_model.step import MIB, Buckets, doublings, fill, step
from vgg_ddp.model.network import vgg

H100 = DEVICES["h100"]
PAPER = layers("D", batch_norm=False, head="paper", num_classes=1000, image_size=224)


# The network


@pytest.mark.parametrize(("name", "head", "size"), [("A", "paper", 64), ("D", "compact", 64), ("C", "paper", 224)])
def test_flops_and_weights_are_what_torch_counts(name: str, head: str, size: int) -> None:
    network = layers(name, batch_norm=True, head=head, num_classes=10, image_size=size)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = vgg(name, True, head, 10, size).train()  # type: ignore[arg-type]
        image = torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        model(image).sum().backward()
    assert 2 * training_flops(network) == counter.get_total_flops()
    assert sum(layer.weights for layer in network) == sum(parameter.numel() for parameter in model.parameters())


def test_vgg16_has_the_papers_weights() -> None:
    assert round(sum(layer.weights for layer in PAPER) / 1e6) == 138  # table 2


# The device


def test_a_layer_takes_as_long_as_the_slower_of_arithmetic_and_memory() -> None:
    device = Device("made up", flops=1e12, bandwidth=1e9, achieved=0.5, value_bytes=2, source="none")
    dense = Layer("dense", 1e12, 2e12, 10, (), 5)
    copying = Layer("copying", 0.0, 0.0, 10**9, (), 5)
    (dense_times, copying_times) = roofline([dense, copying], 1, device)
    assert dense_times == (2.0, 4.0)
    assert copying_times == (4.0, 8.0)


def test_scaling_to_a_measurement_keeps_the_layers_shares() -> None:
    seconds = roofline(PAPER, 8, H100)
    found = scaled(seconds, 1.0, 3.0)
    assert sum(f for f, _ in found) == pytest.approx(1.0)
    assert sum(b for _, b in found) == pytest.approx(3.0)
    assert found[0][0] / found[2][0] == pytest.approx(seconds[0][0] / seconds[2][0])


# The link


def test_a_ring_is_patarasuk_and_yuans() -> None:
    link = Link("made up", 1e9, (Protocol(1e-5, 1e-5, start=0.0),), "none")
    cluster = Cluster(link, link, devices_per_host=8)
    assert cluster.all_reduce(8e8, 4, "ring") == pytest.approx(2 * 3 * 1e-5 + 2 * 3 / 4 * 0.8)
    assert cluster.all_reduce(8e8, 1, "ring") == 0.0


@pytest.mark.parametrize("name", list(CLUSTERS))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_algorithm_beats_the_bytes_that_must_leave_a_host(name: str, algorithm: str) -> None:
    cluster = CLUSTERS[name]
    for count in doublings(16, 4096):
        hosts = count // 8
        least = 2 * (hosts - 1) / hosts * 1e8 / cluster.between.bandwidth
        assert cluster.all_reduce(1e8, count, algorithm) >= least  # type: ignore[arg-type]


def test_many_hosts_need_a_tree_for_small_messages_and_no_flat_ring() -> None:
    cluster = CLUSTERS["ethernet-100"]
    seconds = {algorithm: cluster.all_reduce(1024, 4096, algorithm) for algorithm in ALGORITHMS}
    assert min(seconds, key=seconds.__getitem__) == "tree"
    assert max(seconds, key=seconds.__getitem__) == "ring"
    assert cluster.quickest(1024, 4096) == seconds["tree"]


def test_ethernet_carries_less_than_its_name_says() -> None:
    assert 0.9 < ethernet(25) / (25e9 / 8) < 0.95


def test_shares_of_every_device_in_a_host_load_its_port_as_the_whole_would() -> None:
    cluster = CLUSTERS["ethernet-25"]
    whole = cluster.all_reduce(8e8, 64, "hierarchical")
    shares = cluster.all_reduce_shares(1e8, 64, group=8)
    assert shares == pytest.approx(whole, rel=0.02)
    assert cluster.all_reduce_shares(1e8, 64, group=64) == 0.0


# The exchange


@pytest.mark.parametrize("network", [PAPER, layers("A", True, "compact", 10, 32)], ids=["paper", "compact"])
@pytest.mark.parametrize("limits", [Buckets(), Buckets(64 * MIB, 64 * MIB)], ids=["ddp", "horovod"])
def test_buckets_are_those_of_ddp(network: list[Layer], limits: Buckets) -> None:
    pieces = Plain().pieces(network, 8)
    tensors = [torch.empty(piece.shape, device="meta") for piece in reversed(pieces)]
    expected, _ = dist._compute_bucket_assignment_by_size(tensors, [int(limits.first), int(limits.others)])
    assert [[piece.shape for piece in bucket] for bucket in fill(pieces, limits)] == [
        [tuple(tensors[index].shape) for index in bucket] for bucket in expected
    ]


@pytest.mark.parametrize("rank", [1, 2, 32])
def test_powersgd_compresses_what_torchs_hook_compresses(rank: int) -> None:
    exchange = PowerSGD(rank=rank)
    for piece in Plain().pieces(PAPER, 8):
        if len(piece.shape) > 1:
            rows, columns = piece.shape[0], math.prod(piece.shape[1:])
            expected, whole, small = powerSGD_hook._should_compress(rows, columns, rank, 2)
            assert exchange.compresses(piece) == expected
            if expected:
                assert sum(exchange.messages([piece])) == 4 * small < 4 * whole


def test_half_precision_sends_half() -> None:
    bucket = [Piece(0, (1000, 100))]
    assert HalfPrecision().messages(bucket) == [200_000]
    assert Plain().messages(bucket) == [400_000]


def test_a_cut_classifier_is_cut_evenly_and_shares_no_bucket_with_the_rest() -> None:
    exchange = ModelParallelClassifier(group=8)
    pieces = exchange.pieces(PAPER, 64)
    cut = sum(piece.count for piece in pieces if piece.group == 8)
    assert cut * 8 == sum(layer.weights for layer in PAPER if layer.in_classifier)
    assert all(len({piece.group for piece in bucket}) == 1 for bucket in fill(pieces, Buckets()))
    assert {piece.group for piece in exchange.pieces(PAPER, 4)} == {1, 4}  # no more shares than devices


# The step


def of(exchange: Plain, cluster: Cluster, devices: int, seconds: list[tuple[float, float]]) -> float:
    return step(PAPER, seconds, 0.0, 64, H100, cluster, devices, exchange).seconds


def test_a_step_lies_between_perfect_overlap_and_none() -> None:
    seconds = roofline(PAPER, 64, H100)
    compute = sum(f + b for f, b in seconds)
    for cluster in CLUSTERS.values():
        found = step(PAPER, seconds, 0.0, 64, H100, cluster, 512, Plain())
        assert max(compute, found.communication) <= found.seconds <= compute + found.communication
        assert found.exposed > 0  # at least the last bucket, whose gradients come last


def test_nothing_overlaps_where_the_same_cores_compute_and_copy() -> None:
    seconds = roofline(PAPER, 64, H100)
    base = CLUSTERS["ethernet-100"]
    apart = Cluster(base.inside, base.between, 8, overlaps=False)
    found = step(PAPER, seconds, 0.0, 64, H100, apart, 64, Plain())
    assert found.exposed == found.communication


def test_by_hand_two_layers_on_a_slow_link() -> None:
    """Backward of the second layer ends after 1 s, of the first after 3 s; each bucket takes 4 s on the wire."""
    network = [Layer("a", 0.0, 0.0, 0, ((1000, 1000),), 0), Layer("b", 0.0, 0.0, 0, ((1000, 1000),), 0)]
    link = Link("made up", 1e6, (Protocol(0.0, 0.0, start=0.0),), "none")
    cluster = Cluster(link, link, 2, algorithms=("ring",))
    found = step(network, [(1.0, 2.0), (1.0, 1.0)], 0.5, 1, H100, cluster, 2, Plain(), Buckets(1, 1))
    assert found.communication == pytest.approx(8.0)
    assert found.compute == pytest.approx(5.5)
    assert found.exposed == pytest.approx(1 + 4 + 4 - 3)
    found = step(network, [(1.0, 2.0), (1.0, 1.0)], 0.5, 1, H100, cluster, 2, OuterSteps(every=4))
    assert found.exposed == pytest.approx(8.0 / 4)


def test_predictions_hold_what_any_must() -> None:
    case = Case("VGG-16", PAPER, 64, 4096)
    rows = predict([case], H100, CLUSTERS, [8, 64, 512])
    found = {(row["kind"], row["cluster"], row["exchange"], row["gpus"]): row["efficiency"] for row in rows}
    for exchange in ("plain", "bf16", "PowerSGD rank 2", "every 32 steps", "classifier over 32"):
        for count in (64, 512):
            by_link = [found["weak", name, exchange, count] for name in ("infiniband", "ethernet-100", "ethernet-25")]
            assert by_link == sorted(by_link, reverse=True)
        by_count = [found["weak", "ethernet-25", exchange, count] for count in (8, 64, 512)]
        assert by_count == sorted(by_count, reverse=True)
    assert found["weak", "ethernet-25", "bf16", 64] > found["weak", "ethernet-25", "plain", 64]
    assert found["strong", "ethernet-25", "plain", 512] < found["weak", "ethernet-25", "plain", 512]


def test_a_measured_rate_replaces_the_rooflines() -> None:
    case = Case("VGG-16", PAPER, 64, 4096, measured_rate=2000.0)
    assert case.step(H100, 64, CLUSTERS["infiniband"], 1, Plain()).seconds == pytest.approx(64 / 2000)


def test_all_reduces_are_listed_for_every_algorithm() -> None:
    rows = all_reduces(CLUSTERS, [8, 64], [1000])
    assert len(rows) == 3 * 2 * 3
    assert all(row["seconds"] > 0 for row in rows)


# Calibration


def test_a_link_is_found_again_from_its_times() -> None:
    times = {size: 2 * 30e-6 + size / 2e9 for size in (10_000, 1_000_000, 30_000_000)}
    link = fit_link(times, "made up")
    assert link.bandwidth == pytest.approx(2e9)
    assert link.protocols[0].ring == pytest.approx(30e-6)


def test_a_link_without_time_for_bytes_is_no_link() -> None:
    with pytest.raises(ValueError, match="no time for the bytes"):
        fit_link({1000: 1.0, 10_000_000: 1e-3}, "made up")


def test_calibration_adds_contention_and_messages_to_a_rank_alone() -> None:
    link = Link("made up", 1e9, (Protocol(0.0, 0.0, start=0.0),), "none")
    network = layers("A", True, "compact", 10, 32)
    parts = {"forward": 0.1, "backward": 0.2, "update": 0.05}
    calibration = Calibration(
        network,
        H100,
        {64: parts, 32: {name: value / 2 for name, value in parts.items()}},
        {2: 1.2, 4: 2.5},
        link,
        cores=2,
    )
    size = 4 * sum(layer.weights for layer in network)
    assert calibration.predict(1, 64).seconds == pytest.approx(0.35)
    assert calibration.predict(1, 48).seconds == pytest.approx(0.35 * 48 / 64)
    assert calibration.predict(2, 64).seconds == pytest.approx(0.35 * 1.2 + size / 1e9)
    # Four ranks on two cores: a ring of four, in which every byte takes twice as long.
    assert calibration.predict(4, 64).seconds == pytest.approx(0.35 * 2.5 + 2 * 1.5 * size / 1e9)


# Published points


@pytest.mark.parametrize("point", published.points(), ids=lambda point: point.name)
def test_published_measurements_are_met_within_fifteen_percent(point: published.Point) -> None:
    assert abs(point.error) <= 0.15
    assert point.source
    assert point.assumptions
