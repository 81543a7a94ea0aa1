"""Bars with intervals, beside a benchmark's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOUR = "#0072B2"  # of Okabe & Ito, told apart by the colour-blind


def bars(file: Path | None, rows: Sequence[Mapping[str, Any]], unit: str, label: str, log: bool = False) -> None:
    """FILE with ".png": a bar for the median of each row that has `unit`, and its 95 % interval. Nothing without a file."""
    shown = [row for row in rows if unit in row]
    if file is None or not shown:
        return
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(shown)), layout="constrained")
    places = list(range(len(shown)))[::-1]
    medians = [row[unit] for row in shown]
    low = [max(0.0, row[unit] - row["interval"][0]) for row in shown]
    high = [max(0.0, row["interval"][1] - row[unit]) for row in shown]
    axes.barh(places, medians, xerr=(low, high), color=COLOUR, height=0.6, capsize=3, log=log)
    axes.set_yticks(places, [row["name"] for row in shown], fontsize=8)
    for place, row, error in zip(places, shown, high):
        axes.text(row[unit] + error, place, f"  {row[unit]:.4g}", va="center", fontsize=8)
    axes.margins(x=0.15, y=0.5 / len(shown))
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)
