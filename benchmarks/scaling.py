"""Strong and weak scaling measured from one rank up, what limits it, and a model that predicts 8 to 4,096 GPUs.

    python -m benchmarks.scaling [--ranks 1 2 4] [--network vgg11] [--batch 128] [--json FILE] [--baseline FILE ...]
    python -m benchmarks.scaling --parts predict [--device h100] [--images-per-second 3000] [--json FILE]

Measured: images/s of the training loop's own step on a batch in memory. Weak scaling: every rank has `--batch` images;
strong scaling: the ranks divide them. Each rank is bound to one core (or GPU); more ranks than cores take turns, and the
efficiency is also given against the number of cores. All groups of ranks are measured alternately in the same minutes;
the first round does not count.

The model is calibrated on one rank alone, on ranks that compute at the same time without communication, and on all-reduces
between two ranks. Its predictions are compared with measured steps of several ranks, none of which it was calibrated on. Then
it predicts larger machines from stated hardware, and is compared with three published measurements.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from benchmarks.measurement import baseline, command
from benchmarks.scaling_model import pictures, published
from benchmarks.scaling_model.device import DEVICES
from benchmarks.scaling_model.link import CLUSTERS
from benchmarks.scaling_model.measured import measure
from benchmarks.scaling_model.network import describe, layers
from benchmarks.scaling_model.prediction import EXCHANGES, Case, all_reduces, predict
from benchmarks.scaling_model.step import doublings

COUNTS = doublings(8, 4096)
SHOWN = (8, 64, 512, 4096)


def predictions(options: Namespace) -> dict[str, Any]:
    """The model's predictions of larger machines and of published measurements."""
    device = DEVICES[options.device]
    paper = layers("D", False, "paper", 1000, 224)
    compact = layers("D", True, "compact", 10, 32)
    batch = options.gpu_batch
    cases = [
        Case("VGG-16, 224 pixels", paper, batch, 256 * batch, options.images_per_second),
        Case("VGG-16-BN, compact head, 32 pixels", compact, 8 * batch, 8 * 256 * batch),
    ]
    return {
        "device": asdict(device),
        "clusters": {name: asdict(cluster) for name, cluster in CLUSTERS.items()},
        "networks": {case.name: describe(list(case.network)) for case in cases},
        "rows": predict(cases, device, CLUSTERS, COUNTS),
        "all_reduce": all_reduces(CLUSTERS, COUNTS, [2**10, 2**20, 25 * 2**20, 411 * 10**6]),
        "published": [{**asdict(point), "error": point.error} for point in published.points()],
    }


def show_measured(measured: dict[str, Any]) -> None:
    """Print the measured rates, and the model beside the steps of several ranks."""
    print(f"{'measured':<22} {'images/s':>9} {'interval':>17} {'ms a step':>10}")
    for row in measured["rows"]:
        low, high = row["interval"]
        print(
            f"{row['name']:<22} {row['images_per_second']:>9.1f} {f'{low:.1f} to {high:.1f}':>17} "
            f"{row['seconds']['step'] * 1e3:>10.1f}"
        )
    for row in measured.get("check", []):
        if row is measured["check"][0]:
            print(
                f"\n{'':<18} {'efficiency':>10} {'of cores':>9}   lost to: {'small batch':>11} {'contention':>10} "
                f"{'messages':>8} {'rest':>6}   {'model':>9} {'error':>7}"
            )
        print(
            f"{row['name']:<18} {row['efficiency']:>10.1%} {row['efficiency_of_cores']:>9.1%}            "
            f"{row['loss_small_batch']:>11.1%} {row['loss_contention']:>10.1%} {row['loss_communication']:>8.1%} "
            f"{row['loss_rest']:>6.1%}   {row['predicted_seconds'] * 1e3:>6.1f} ms {row['error']:>+7.1%}"
        )
    for row in measured.get("check", []):
        if row["efficiency_of_cores"] > row["efficiency"] and row["kind"] == "weak":
            print(f"{row['ranks']} ranks take turns on {row['cores']} cores: they cannot reach 100 %")


def show_predicted(predicted: dict[str, Any]) -> None:
    """Print the predicted efficiencies, and the model beside published measurements."""
    print(
        f"\npredicted efficiency on {predicted['device']['name']}, at {predicted['device']['achieved']:.0%} of its peak"
    )
    index = {row["name"]: row["efficiency"] for row in predicted["rows"]}
    for case in predicted["networks"]:
        for kind in ("weak", "strong"):
            print(f"{f'{case}, {kind}':<48}" + "".join(f"{f'{count} GPUs':>10}" for count in SHOWN))
            for cluster in predicted["clusters"]:
                for exchange in EXCHANGES:
                    values = [index.get(f"{case}, {kind}, {cluster}, {exchange.name}, {count} GPUs") for count in SHOWN]
                    cells = "".join(f"{'' if value is None else f'{value:.0%}':>10}" for value in values)
                    print(f"  {cluster:<16}{exchange.name:<30}{cells}")
    print(f"\n{'published':<58} {'measured':>9} {'model':>7} {'error':>7}")
    for point in predicted["published"]:
        print(f"{point['name']:<58} {point['measured']:>9.2f} {point['predicted']:>7.2f} {point['error']:>+7.1%}")


def main() -> None:
    """Measure and predict, print and keep the rows."""
    parser = command.parser("scaling", __doc__, threads=1)
    parser.add_argument("--parts", nargs="+", choices=["measure", "predict"], default=["measure", "predict"])
    parser.add_argument(
        "--ranks", type=command.count, nargs="+", default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)"
    )
    parser.add_argument(
        "--network",
        default="vgg11",
        choices=["vgg11", "vgg13", "vgg16", "vgg19", "vgg_tiny"],
        help="measured network (default: vgg11)",
    )
    parser.add_argument("--batch", type=command.count, default=128, help="images of one rank, measured (default: 128)")
    parser.add_argument("--image-size", type=command.count, default=32, help="pixels, measured (default: 32)")
    parser.add_argument("--precision", default="auto", choices=command.PRECISIONS, help=command.PRECISION_HELP)
    parser.add_argument("--steps", type=command.count, default=2, help="steps in a round (default: 2)")
    parser.add_argument("--device", choices=list(DEVICES), default="h100", help="predicted for (default: h100)")
    parser.add_argument(
        "--gpu-batch", type=command.count, default=64, help="images of each GPU at 224 pixels (default: 64)"
    )
    parser.add_argument("--images-per-second", type=float, help="the measured rate of one GPU at 224 pixels")
    options = parser.parse_args()
    contents: dict[str, Any] = {"rows": []}
    if "measure" in options.parts:
        measured = measure(options)
        show_measured(measured)
        contents |= measured
    if "predict" in options.parts:
        contents["predicted"] = predictions(options)
        show_predicted(contents["predicted"])
    command.write(options, **contents)
    if options.json:
        pictures.draw(contents, options.json)
    if options.baseline:  # last, as it may be refused: what was measured is already written
        command.write(options, **contents, verdicts=baseline.report(contents["rows"], options))


if __name__ == "__main__":
    command.run(main)
