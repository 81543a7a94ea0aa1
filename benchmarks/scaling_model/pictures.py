"""The pictures of `benchmarks.scaling`, beside its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by the colour-blind; and a mark for each, for print.
STYLES = [("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v")]
TITLES = {
    "infiniband": "8 GPUs a host on NVLink;\n8 x 400 Gbit/s InfiniBand",
    "ethernet-100": "8 GPUs a host on NVLink;\n100 Gbit/s Ethernet",
    "ethernet-25": "8 GPUs a host on NVLink;\n25 Gbit/s Ethernet",
}


def draw(contents: dict[str, Any], file: Path) -> list[Path]:
    """Draw what there is: FILE-measured.png, FILE-predicted-N.png for each network, FILE-published.png."""
    figures: dict[str, Figure] = {}
    if "check" in contents:
        figures["measured"] = _measured(contents["check"])
    if "predicted" in contents:
        for number, case in enumerate(contents["predicted"]["networks"], start=1):
            figures[f"predicted-{number}"] = _predicted(contents["predicted"], case)
        figures["all-reduce"] = _all_reduce(contents["predicted"]["all_reduce"])
        figures["published"] = _published(contents["predicted"]["published"])
    paths = []
    for name, figure in figures.items():
        paths.append(file.with_name(f"{file.stem}-{name}.png"))
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _measured(rows: list[dict[str, Any]]) -> Figure:
    """The seconds of each step by cause, beside the model's."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    causes = {
        "one rank alone": lambda row: row["efficiency"],
        "smaller local batch": lambda row: max(0.0, row["loss_small_batch"]),
        "contention": lambda row: max(0.0, row["loss_contention"]),
        "messages": lambda row: max(0.0, row["loss_communication"]),
        "not explained": lambda row: max(0.0, row["loss_rest"]),
    }
    left = [0.0] * len(rows)
    places = list(range(len(rows)))[::-1]
    for (name, share), (colour, _) in zip(causes.items(), STYLES):
        widths = [share(row) * row["seconds"] * 1e3 for row in rows]
        axes.barh(places, widths, left=left, color=colour, label=name, height=0.6)
        left = [start + width for start, width in zip(left, widths)]
    axes.plot([row["predicted_seconds"] * 1e3 for row in rows], places, "k|", markersize=26, label="the model")
    axes.set_yticks(places, [f"{row['name']}\n{row['local_batch']} images each" for row in rows])
    axes.set_xlabel("milliseconds of a step; the model has not seen these steps")
    axes.legend(fontsize=8)
    return figure


def _predicted(predicted: dict[str, Any], case: str) -> Figure:
    figure, grid = plt.subplots(2, 3, figsize=(11, 6.6), sharex=True, sharey=True, layout="constrained")
    rows = [row for row in predicted["rows"] if row["case"] == case]
    for line, kind in zip(grid, ("weak", "strong")):
        for axes, cluster in zip(line, predicted["clusters"]):
            for exchange, (colour, mark) in zip(dict.fromkeys(row["exchange"] for row in rows), STYLES):
                points = [
                    (row["gpus"], row["efficiency"])
                    for row in rows
                    if (row["kind"], row["cluster"], row["exchange"]) == (kind, cluster, exchange)
                ]
                axes.plot(*zip(*points), color=colour, marker=mark, markersize=4, label=exchange)
            _gpus(axes)
            axes.set_ylim(0, 1.02)
            if kind == "weak":
                axes.set_title(TITLES[cluster], fontsize=9)
        batch = next(row["local_batch"] for row in rows if row["kind"] == "weak")
        total = next(row["local_batch"] * row["gpus"] for row in rows if row["kind"] == "strong")
        images = f"weak: {batch} images a GPU" if kind == "weak" else f"strong: {total} images in all"
        line[0].set_ylabel(f"efficiency, {images}", fontsize=9)
    for axes in grid[1]:
        axes.set_xlabel("GPUs")
    grid[0][0].legend(fontsize=8)
    figure.suptitle(
        f"Predicted: {case}, {predicted['device']['name']} at {predicted['device']['achieved']:.0%} of its peak"
    )
    return figure


def _all_reduce(rows: list[dict[str, Any]]) -> Figure:
    sizes = list(dict.fromkeys(row["bytes"] for row in rows))
    clusters = list(dict.fromkeys(row["cluster"] for row in rows))
    figure, grid = plt.subplots(1, len(sizes), figsize=(11, 3.4), layout="constrained")
    for axes, size in zip(grid, sizes):
        for cluster, line in zip(clusters, ("-", "--", ":")):
            for algorithm, (colour, _) in zip(("ring", "tree", "hierarchical"), STYLES):
                points = [
                    (row["gpus"], row["seconds"] * 1e3)
                    for row in rows
                    if (row["bytes"], row["cluster"], row["algorithm"]) == (size, cluster, algorithm)
                ]
                axes.plot(*zip(*points), line, color=colour, label=f"{algorithm}, {cluster}")
        _gpus(axes)
        axes.set_yscale("log")
        axes.set_title(f"{size / 1e6:.3g} MB" if size > 1e5 else f"{size / 1e3:.0f} kB", fontsize=9)
        axes.set_xlabel("GPUs")
    grid[0].set_ylabel("milliseconds of an all-reduce")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def _published(points: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    places = list(range(len(points)))[::-1]
    for place, point in zip(places, points):
        axes.barh(place + 0.18, 1, height=0.32, color="#999999")
        axes.barh(place - 0.18, 1 + point["error"], height=0.32, color=STYLES[0][0])
        axes.text(0.02, place + 0.18, f"measured {point['measured']:.2f}", va="center", fontsize=8)
        text = f"model {point['predicted']:.2f} ({point['error']:+.1%})"
        axes.text(0.02, place - 0.18, text, va="center", fontsize=8, color="white")
    axes.axvspan(0.85, 1.15, color="#009E73", alpha=0.15, label="within 15 %")
    axes.set_yticks(places, [point["name"] for point in points], fontsize=8)
    axes.set_xlabel("relative to what was published")
    figure.legend(loc="outside upper right", fontsize=8)
    return figure


def _gpus(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4,096"])
    axes.grid(alpha=0.3)
