"""The rows of the communication benchmark, as tables for a page and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.communication.choices import ALONE, CHOICES
from benchmarks.communication.link import LINKS

Rows = Sequence[dict[str, Any]]
EXACT, LOW_RANK = ["#000000", "#999999", "#E69F00"], ["#9AD0F5", "#56B4E9", "#0072B2", "#00518A", "#002F52"]
OUTER, SPLIT = ["#009E73", "#66C2A5", "#00664B"], ["#D55E00", "#CC79A7", "#F0A0C8"]
STYLES = dict(zip(CHOICES, EXACT + LOW_RANK + OUTER + SPLIT, strict=True))


def tables(rows: Rows) -> str:
    """Markdown: efficiency of each choice over each link, for every network and head; then the results of training."""
    speed = [row for row in rows if row["part"] == "speed"]
    sections = []
    for case in dict.fromkeys((row["network"], row["image_size"], row["head"]) for row in speed):
        sections.append(_speed(case, [row for row in speed if _case(row) == case]))
    training = [row for row in rows if row["part"] == "training"]
    if training:
        sections.append(_training(training, speed))
    return "\n\n".join(sections)


def _case(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["network"], row["image_size"], row["head"]


def link_name(link: str) -> str:
    """A link as a page calls it."""
    if not link.isdigit():
        return link
    return f"{int(link) // 1000} Gbit/s" if int(link) >= 1000 else f"{link} Mbit/s"


def _speed(case: tuple[str, int, str], rows: Rows) -> str:
    links = [link for link in LINKS if any(row["link"] == link for row in rows)]
    by_link = {(row["choice"], row["link"]): row for row in rows}
    lines = [f"{case[0]}, {case[1]} pixels, {case[2]} head: efficiency (MB that a rank sends in a step)", ""]
    lines += [_line(["choice", *map(link_name, links)]), _line(["---"] * (len(links) + 1))]
    for choice in CHOICES:
        cells = [by_link.get((choice, link)) for link in links]
        if any(cells):
            text = [f"{cell['efficiency']:.2f} ({_megabytes(cell)})" if cell else "" for cell in cells]
            lines.append(_line([choice, *text]))
    return "\n".join(lines)


def _megabytes(row: dict[str, Any]) -> str:
    return f"{row['megabytes_per_step']:.2g}" if row["megabytes_per_step"] < 10 else f"{row['megabytes_per_step']:.0f}"


def _training(rows: Rows, speed: Rows) -> str:
    """Means over the seeds; the time to the loss is the steps times the same network's seconds of a step over each link."""
    network, size, loss, steps = (rows[0][key] for key in ("network", "image_size", "loss", "steps"))
    same = [row for row in speed if (row["network"], row["image_size"]) == (network, size)]
    links = [link for link in LINKS if any(row["link"] == link for row in same)]
    seconds = {(row["choice"], row["link"]): row["batch"] / row["images_per_second"] for row in same}
    plain = {row["seed"]: row["test_accuracy"] for row in rows if row["choice"] == "plain"}
    titles = ["choice", f"steps to a loss of {loss:g}", f"accuracy after {steps} steps", "against plain"]
    lines = [f"{network}, {size} pixels: training, and minutes to the loss over each link", ""]
    lines += [_line([*titles, *map(link_name, links)]), _line(["---"] * (len(titles) + len(links)))]
    for choice in dict.fromkeys(row["choice"] for row in rows):
        own = [row for row in rows if row["choice"] == choice]
        reached = [row["steps_to_loss"] for row in own]
        mean = statistics.mean(reached) if None not in reached else None
        differences = [100 * (row["test_accuracy"] - plain[row["seed"]]) for row in own if row["seed"] in plain]
        times = [
            f"{mean * seconds[choice, link] / 60:.1f}" if mean and (choice, link) in seconds else "" for link in links
        ]
        lines.append(
            _line(
                [
                    choice,
                    "not reached" if mean is None else f"{mean:.0f}",
                    f"{statistics.mean(row['test_accuracy'] for row in own):.2%}",
                    "" if choice == "plain" else _difference(differences),
                    *times,
                ]
            )
        )
    return "\n".join(lines)


def _difference(points: list[float]) -> str:
    """Mean with its standard error, in percentage points; of the same seeds."""
    if not points:
        return ""
    error = f" ± {statistics.stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.2f}{error}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(file: Path, rows: Rows) -> None:
    """FILE with ".png": efficiency against the link, a panel for each network and head, a line for each choice."""
    speed = [row for row in rows if row["part"] == "speed" and row["choice"] != ALONE]
    cases = list(dict.fromkeys(_case(row) for row in speed))
    if not cases:
        return
    figure, panels = plt.subplots(1, len(cases), figsize=(5.2 * len(cases), 4.6), layout="constrained", squeeze=False)
    for axes, case in zip(panels[0], cases):
        for choice, colour in STYLES.items():
            by_link = {row["link"]: row for row in speed if _case(row) == case and row["choice"] == choice}
            places = [(LINKS.index(link), by_link[link]) for link in LINKS if link in by_link]
            if places:
                heights = [row["efficiency"] for _, row in places]
                ends = [
                    [row["efficiency"] - row["least"] for _, row in places],
                    [row["most"] - row["efficiency"] for _, row in places],
                ]
                axes.errorbar(
                    [place for place, _ in places], heights, ends, fmt="o-", color=colour, label=choice, capsize=2
                )
        axes.set_xticks(range(len(LINKS)), [link_name(link) for link in LINKS], fontsize=8)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.set_title(f"{case[0]}, {case[1]} pixels, {case[2]} head", fontsize=10)
        axes.set_ylabel("images/s over twice those of one rank")
        axes.legend(fontsize=7, loc="lower left")
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)
