"""The map of the test images: zoomed, moved, filtered and opened, by mouse and by keyboard."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.browsing import IN_BROWSER, page_of
from tests.support.runs import Run

pytestmark = IN_BROWSER


def on_the_map(run: Run, zoom: float = 1.0, left: float = 0.0, top: float = 0.0) -> np.ndarray:
    """Whether each image lies in the part of the map that begins at (left, top) and is 1 / zoom wide, and the page's margin."""
    places = np.load(run.path / "evaluation" / "why.npz")["map_places"].astype(float)
    canvas, margin = np.array([1200, 800]), 40
    pixels = margin + (np.round(places, 4) - [left, top]) * zoom * (canvas - 2 * margin)
    return ((pixels >= 0) & (pixels <= canvas)).all(axis=1)


def test_the_map_is_zoomed_moved_and_opened_by_mouse_and_keyboard(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    canvas, told = page.locator("#map-canvas"), page.locator("#map-value")
    wrong = small.label != small.prediction

    def expect(shown: np.ndarray) -> None:
        images, mistakes = int(shown.sum()), int((shown & wrong).sum())
        words = f"{images} image{'s' * (images != 1)} in view, {mistakes} of them named wrongly"
        page.wait_for_function("words => document.querySelector('#map-value').textContent === words", arg=words)

    canvas.scroll_into_view_if_needed()
    everything = np.full(len(wrong), True)
    expect(everything)
    assert canvas.evaluate("map => map.getContext('2d').getImageData(0, 0, 1200, 800).data.some(value => value)")
    page.select_option("#map-shown", "mistakes")
    expect(wrong)
    page.select_option("#map-shown", label="cat")
    expect(small.label == 3)
    page.select_option("#map-shown", "")
    page.click("#map-in")
    page.click("#map-in")
    edge = (1 - 1 / 2.25) / 2
    expect(on_the_map(small, 2.25, edge, edge))
    canvas.focus()
    page.keyboard.press("ArrowRight")
    expect(on_the_map(small, 2.25, edge + 0.15 / 2.25, edge))
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    expect(on_the_map(small, 2.25, edge + 0.15 / 2.25, 0))
    page.keyboard.press("Enter")  # those in view, the nearest to the middle first
    assert page.inner_text("#image-count") == f"1 of {on_the_map(small, 2.25, edge + 0.15 / 2.25, 0).sum()}"
    page.keyboard.press("Escape")
    page.click("#map-whole")
    expect(everything)
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    places = np.load(small.path / "evaluation" / "why.npz")["map_places"].astype(float)
    nearest = np.hypot(*((places - 0.5) * [1120, 720]).T).argmin()
    assert f" image {nearest} of " in page.inner_text("#image-words")
    page.keyboard.press("Escape")
    canvas.focus()
    page.mouse.wheel(0, -300)
    page.wait_for_function("!document.querySelector('#map-value').textContent.startsWith('400 ')")
    assert told.inner_text().endswith("named wrongly")
