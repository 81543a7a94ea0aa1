"""Pages in a real browser: Debian's Chromium, headless, from file://, driven by Playwright."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.runs import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
IN_BROWSER = [
    pytest.mark.host,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; apt-get install chromium"),
]


@dataclass
class Watched:
    """A page and the problems that it caused."""

    page: Page
    problems: list[str] = field(default_factory=list)


def page_of(run: Run) -> Path:
    return run.path / "report" / "index.html"


def shown_images(page: Page) -> list[int]:
    return [int(k) for k in page.eval_on_selector_all("#cell-images button", "all => all.map(b => b.dataset.image)")]


def come_to_a_cell(page: Page) -> None:
    """Scroll to the images of a cell, which are drawn when they come near."""
    page.locator("#cell").scroll_into_view_if_needed()
    page.wait_for_selector("#cell-images button")
