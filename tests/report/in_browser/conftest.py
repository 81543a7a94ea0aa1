"""A browser, and the pages that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browsing import CHROMIUM, Watched
from tests.support.runs import CLASSES, Run, make_run
from vgg_ddp.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # which takes most of a second

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """`visit(path, width, scheme)`: the page, watched for errors, dialogs and requests; none is allowed."""
    opened: list[Watched] = []

    def go(path: Path, width: int = 1280, scheme: Any = "light", **settings: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **settings)
        watched = Watched(context.new_page())
        opened.append(watched)
        page, problems = watched.page, watched.problems
        page.set_default_timeout(300_000)
        page.on("console", lambda message: note_console(problems, f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url == url or note(problems, request.url))
        url = path.as_uri()
        page.goto(url)
        return page

    def note(problems: list[str], url: str) -> None:
        if not url.startswith("data:"):
            problems.append(f"request: {url[:200]}")

    def note_console(problems: list[str], text: str) -> None:
        if "getImageData" not in text:  # a hint caused by the test itself, which reads pixels
            problems.append(text)

    yield go
    for watched in opened:
        watched.page.context.close()
        assert watched.problems == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    groups = {"vehicles": [CLASSES[k] for k in (0, 1, 8, 9)], "animals": CLASSES[2:8]}
    run = make_run(tmp_path_factory.mktemp("small") / "run", shape=(32, 32), groups=groups)
    write_report(run.path, run.dataset)
    return run
