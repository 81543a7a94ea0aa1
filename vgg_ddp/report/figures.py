"""Figures of the report as inline SVG, and pictures as PNG data URLs.

No name from the data is ever drawn by matplotlib: names stand in the HTML, where they wrap, scale and are escaped.
"""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

import matplotlib.image
import matplotlib.style
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, safe for the colour-blind. The page's style sheet decides what each looks like in light and
# dark, so figures are drawn in these stand-ins, which become CSS.
INK, BLUE, ORANGE = "#010203", "#0072b2", "#d55e00"
_CSS = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}

STRONGEST_CELL = 0.7  # above this opacity a number in a cell of the confusion matrix would be hard to read

_STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, searchable, in the reader's font
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
}

Series = tuple[list[float], list[float]]  # epochs, values


@dataclass(frozen=True)
class Curves:
    """One measure over the epochs: means per epoch, and the finer curve of training steps, each possibly empty."""

    train: Series = field(default_factory=lambda: ([], []))
    validation: Series = field(default_factory=lambda: ([], []))
    steps: Series = field(default_factory=lambda: ([], []))


def curves_svg(name: str, alt: str, curves: Curves, label: str, shares: bool = False) -> Markup:
    """Training and validation curves over the epochs.

    Args:
        name: prefix of the SVG's ids, unique on the page.
        alt: what a reader who cannot see the figure is told.
        label: of the vertical axis.
        shares: values are from 0 to 1 and shown as percentages.
    """
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure, axes = _figure()
        axes.plot(*curves.steps, color=BLUE, alpha=0.5, linewidth=0.9, label="training, steps")
        marker = len(curves.train[0]) <= 20
        axes.plot(*curves.train, color=BLUE, marker="o" if marker else None, label="training")
        axes.plot(*curves.validation, color=ORANGE, marker="s" if marker else None, linestyle="--", label="validation")
        if shares:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        drawn = [line for line in axes.get_lines() if np.size(line.get_xdata())]
        if len(drawn) > 1:
            axes.legend(handles=drawn)
        return _svg(figure, name, alt)


def learning_rate_svg(name: str, alt: str, rates: Series) -> Markup:
    """The learning rate over the epochs; arguments as of `curves_svg`."""
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure, axes = _figure()
        axes.plot(*rates, color=BLUE, marker="o" if len(rates[0]) == 1 else None)
        axes.set_ylabel("learning rate")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        return _svg(figure, name, alt)


def confusion_svg(name: str, alt: str, opacity: npt.NDArray[np.float64]) -> Markup:
    """A confusion matrix too large for numbers: `cell_opacity` as colours, right answers blue, mistakes orange."""
    classes = len(opacity)
    pixels = np.empty((classes, classes, 4))
    pixels[..., :3] = _rgb(ORANGE)
    pixels[np.arange(classes), np.arange(classes), :3] = _rgb(BLUE)
    pixels[..., 3] = opacity / STRONGEST_CELL  # there are no numbers here to keep readable
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name, "axes.grid": False}]):
        figure = Figure(figsize=(6, 6), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(pixels, interpolation="none")
        axes.set(xlabel="taken for class number", ylabel="true class number")
        return _svg(figure, name, alt)


def cell_opacity(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How strongly to colour each cell of a confusion matrix [true, predicted], from 0 to `STRONGEST_CELL`.

    The diagonal is coloured by its share of the row; mistakes by their share against the most frequent mistake, so
    that they can be told apart however rare they are.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    mistakes = shares * ~np.eye(len(shares), dtype=bool)
    strength: npt.NDArray[np.float64] = np.diag(np.diag(shares)) + mistakes / max(mistakes.max(initial=0.0), 0.05)
    return STRONGEST_CELL * strength


def picture(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG data URL of an image, uint8 [height, width, 3]; grey [height, width] or [height, width, 1] will do."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    png = io.BytesIO()
    matplotlib.image.imsave(png, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")  # points become CSS pixels: legible on a phone as is
    axes = figure.add_subplot()
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return figure, axes


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an SVG element to stand inside HTML: fluid, described, its ids unlike any other figure's."""
    text = io.StringIO()
    # All metadata off: it names outside addresses and the time, and the page is to be the same every time.
    figure.savefig(
        text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ET.fromstring(text.getvalue())  # safe: matplotlib wrote it a line above
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):  # a style sheet in an SVG would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        # HTML knows SVG without namespaces.
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in attributes.items()})
    for fixed in ("width", "height", "version"):
        root.attrib.pop(fixed, None)
    root.attrib.update({"role": "img", "aria-label": alt})
    return Markup(ET.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    if key in ("style", "fill", "stroke"):
        for colour, css in _CSS.items():
            value = value.replace(colour, css)
    return value
