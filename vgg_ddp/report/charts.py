"""Charts as inline SVG. Colours are the style sheet's, so that a chart follows light, dark and print.

Where a line rises far above its beginning, as a loss that diverges does, the vertical axis is logarithmic, and says so.

A chart carries its points in `data-chart`, from which the page's script tells the values under the pointer or, with the
arrow keys, the keyboard.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vgg_ddp.report import words

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 420, 12, 212  # of the area that is drawn in
MOST_POINTS = 500  # of one line
FAR_ABOVE = 10  # times the first value of every line

Points = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Line:
    """One line: its name, its points, and its class in the style sheet (its colour and dashes)."""

    name: str
    points: Points
    style: str


def lines(
    name: str,
    alt: str,
    drawn: list[Line],
    label: str,
    shares: bool = False,
    x_label: str = "epoch",
    x_exponent: int | None = None,
) -> Markup:
    """Lines over a common horizontal axis that begins at zero.

    Args:
        name: what the measure is called on the page.
        alt: what a reader who cannot see the chart is told.
        label: of the vertical axis.
        shares: values are from 0 to 1 and shown as percentages.
        x_exponent: of a logarithmic horizontal axis the power of ten at its beginning; its values are decades from there.
    """
    thinned = [Line(line.name, _thin(line.points), line.style) for line in drawn]
    values = [y for line in thinned for y in line.points[1] if math.isfinite(y)]
    ends = [x for line in thinned for x in line.points[0]]
    logarithmic = not shares and _logarithmic(thinned)
    if logarithmic:
        values = [math.log10(y) for y in values]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = 0.0 if low >= 0 and low < 0.6 * high and not logarithmic else low
    if low == high:  # nothing rises or falls: shown against zero
        low, high = min(low, 0.0), max(high, 0.0) if low else 1.0
    across, up = _ticks(0.0, max(ends, default=1.0) or 1.0, 6), _ticks(low, high, 5)
    if logarithmic:
        up = _decades(low, high)
    low, high = min(low, up[0]), max(high, up[-1])
    right = max(ends, default=1.0) or 1.0

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / right

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def named(tick: float) -> str:
        return _label(10.0**tick if logarithmic else tick, up, shares)

    def named_below(tick: float) -> str:
        return _label(tick if x_exponent is None else 10.0 ** (tick + x_exponent), across, False)

    if x_exponent is not None:
        across = _decades(0.0, right)

    parts = [_horizontal(y(tick), named(tick)) for tick in up if low <= tick <= high]
    parts += [_below(x(tick), named_below(tick)) for tick in across if tick <= right]
    for line in thinned:
        heights = [math.log10(b) if logarithmic and math.isfinite(b) else b for b in line.points[1]]
        dots = [(x(a), y(b) if math.isfinite(b) else b) for a, b in zip(line.points[0], heights)]
        parts.append(_path(dots, line.style))
    if logarithmic:
        label = f"{label}, on a logarithmic axis"
        parts.append(_text(LEFT + 4, TOP + 12, "logarithmic", "axis-name right"))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, x_label, "axis-name"))
    chart = {
        "name": name,
        "x": x_label,
        "x_exponent": x_exponent,
        "shares": shares,
        "logarithmic": logarithmic,
        "frame": [LEFT, RIGHT, TOP, BOTTOM, right, low, high],
        "lines": [
            {"name": line.name, "style": line.style, "x": _rounded(line.points[0]), "y": _rounded(line.points[1])}
            for line in thinned
            if line.points[0]
        ],
    }
    return _svg(alt, parts, label, chart)


def reliability(alt: str, bins: list[dict[str, Any]]) -> Markup:
    """Accuracy against confidence, with intervals, and how many images each bin holds."""

    def x(share: float) -> float:
        return LEFT + (RIGHT - LEFT) * share

    def y(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * share

    most = max(row["images"] for row in bins) or 1
    parts = [_horizontal(y(tick), words.percent(tick, 0)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts += [_below(x(tick), words.percent(tick, 0)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for row in bins:
        if not row["images"] or not math.isfinite(row["confidence"]):
            continue
        left, right, middle = x(row["low"]) + 1, x(row["high"]) - 1, x(row["confidence"])
        share = max(0.004, row["images"] / most)
        bar = (BOTTOM - TOP) * 0.3 * share
        parts.append(
            f'<rect class="amount" x="{left:.1f}" y="{BOTTOM - bar:.1f}" width="{right - left:.1f}" height="{bar:.1f}"/>'
        )
        low, high = row["interval"]
        parts.append(f'<path class="whisker" d="M{middle:.1f} {y(low):.1f}V{y(high):.1f}"/>')
    dots = [(x(row["confidence"]), y(row["accuracy"])) for row in bins if row["images"]]
    dots = [dot for dot in dots if math.isfinite(dot[0])]
    parts.append(f'<path class="ideal" d="M{LEFT} {BOTTOM}L{RIGHT} {TOP}"/>')
    parts.append(_path(dots, "validation"))
    parts += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in dots]
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, "how sure it is", "axis-name"))
    return _svg(alt, parts, "how often it is right", None)


def density(alt: str, counts: list[list[int]], across: str, up: str, ends: tuple[float, float]) -> Markup:
    """How many fall into each cell of a grid, from none (empty) to the most (full colour), on a logarithmic scale.

    Args:
        counts: [up, across], each axis in equal steps from zero.
        across, up: what the axes are.
        ends: their upper ends, (across, up).
    """
    most = max(max(row) for row in counts) or 1
    width, height = (RIGHT - LEFT) / len(counts[0]), (BOTTOM - TOP) / len(counts)
    parts = []
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                x, y, share = LEFT + j * width, BOTTOM - (i + 1) * height, math.log1p(count) / math.log1p(most)
                parts.append(
                    f'<rect class="dense" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                    f'fill-opacity="{max(0.06, share):.2f}"/>'
                )
    for k in range(5):
        parts.append(_horizontal(BOTTOM - (BOTTOM - TOP) * k / 4, f"{ends[1] * k / 4:g}"))
        parts.append(_below(LEFT + (RIGHT - LEFT) * k / 4, f"{ends[0] * k / 4:g}"))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, across, "axis-name"))
    return _svg(alt, parts, up, None)


def _thin(points: Points) -> Points:
    """At most `MOST_POINTS`, evenly chosen, the last one kept."""
    count = len(points[0])
    stride = max(1, -(-count // MOST_POINTS))
    chosen = sorted({*range(0, count, stride), count - 1} - {-1})
    return [points[0][k] for k in chosen], [points[1][k] for k in chosen]


def _logarithmic(drawn: list[Line]) -> bool:
    """Whether a value is far above the first one of every line."""
    found = [values for line in drawn if (values := [y for y in line.points[1] if math.isfinite(y)])]
    if not found or min(min(values) for values in found) <= 0:
        return False
    return max(max(values) for values in found) > FAR_ABOVE * max(values[0] for values in found)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, as their exponents, from at most `low` to at least `high`, at most some 6 of them."""
    first, last = math.floor(low), math.ceil(high)
    return [float(k) for k in range(first, last + 1, max(1, -(-(last - first) // 5)))]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _label(tick: float, ticks: list[float], shares: bool) -> str:
    if shares:
        return words.percent(round(tick, 9), 0 if 100 * (ticks[1] - ticks[0]) >= 0.999 else 1)
    return f"{round(tick, 12):,g}" if abs(tick) >= 1e-4 or tick == 0 else f"{tick:.0e}"


def _rounded(values: list[float]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _path(dots: list[tuple[float, float]], style: str) -> str:
    """A line through points in the SVG's own units, broken where one is no number; a lone point is a dot."""
    shown = [dot for dot in dots if math.isfinite(dot[1])]
    if len(shown) == 1:
        return f'<circle class="dot {style}" cx="{shown[0][0]:.1f}" cy="{shown[0][1]:.1f}" r="3.5"/>'
    steps, pen = [], "M"
    for across, up in dots:
        if not math.isfinite(up):
            pen = "M"
            continue
        steps.append(f"{pen}{across:.1f} {up:.1f}")
        pen = "L"
    return f'<path class="line {style}" d="{"".join(steps)}"/>'


def _horizontal(y: float, label: str) -> str:
    return f'<path class="rule" d="M{LEFT} {y:.1f}H{RIGHT}"/>{_text(LEFT - 6, y + 4, label, "tick left")}'


def _below(x: float, label: str) -> str:
    return _text(x, BOTTOM + 17, label, "tick")


def _text(x: float, y: float, text: str, style: str) -> str:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, style, text)


def _svg(alt: str, parts: list[str], label: str, chart: dict[str, Any] | None) -> Markup:
    attributes = Markup(' tabindex="0" data-chart="{}"').format(json.dumps(chart)) if chart else ""
    opened = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>').format(
        WIDTH, HEIGHT, f"{alt}. Vertical: {label}", attributes
    )
    return opened + Markup("".join(parts)) + Markup("</svg>")
