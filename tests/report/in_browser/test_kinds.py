"""Pages of every kind: axe in light and dark, and no width at which they scroll sideways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support.browsing import IN_BROWSER, page_of, shown_images
from tests.support.pictures import smooth
from tests.support.runs import CLASSES, Run, make_run, write_json
from vgg_ddp.errors import DIVERGED
from vgg_ddp.report import write_image_answers, write_report, write_side_by_side
from vgg_ddp.report.image_answers import Answer
from vgg_ddp.report.recipes import write_recipes
from vgg_ddp.study import page as study_pages
from vgg_ddp.study.definition import Definition, cells
from vgg_ddp.study.running import run_folder
from vgg_ddp.study.summary import summarise
from vgg_ddp.study.trials import Found

pytestmark = IN_BROWSER

KINDS = [
    "run",
    "two classes",
    "three classes, photos",
    "100 classes",
    "1,000 classes",
    "unfinished",
    "stopped",
    "diverged",
    "comparison",
    "recipes",
    "study",
    "own images",
]
REPEATED = "tbody tr:nth-child(n+101), option:nth-child(n+101)"  # like the rows before them; axe would take a minute
WIDTHS = [360, 390, 640, 820, 1100, 1280, 2560]  # 640 is a screen of 1,280 at 200 % zoom


@pytest.fixture(scope="module")
def pages(small: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each of `KINDS`."""
    folder = tmp_path_factory.mktemp("pages")
    same = {"dataset": small.dataset, "label": small.label}
    other = make_run(folder / "other", seed=8, **same)
    two = make_run(folder / "two", classes=["cat", "dog"], images=120)
    three = make_run(folder / "three", classes=["cat", "dog", "ship"], images=60, shape=(160, 240))
    many = {
        count: make_run(folder / f"{count}", classes=[f"class {k}" for k in range(count)], images=max(1000, 3 * count))
        for count in (100, 1000)
    }
    answers = [
        Answer.of(f"{k}.jpg", "cat", small.predictions.probabilities[k], smooth(50, 80, k), smooth(32, 32, k))
        for k in range(3)
    ]
    incomplete = {}
    for ending in ("running", "stopped", "failed"):
        run = make_run(folder / ending, **same)
        shutil.rmtree(run.path / "evaluation")
        write_json(run.path / "outcome.json", {"state": ending, "why": DIVERGED if ending == "failed" else ""})
        incomplete[ending] = write_report(run.path, None)
    sides = [[small.path, other.path], [make_run(folder / f"seed {seed}", seed=seed, **same).path for seed in (9, 10)]]
    for seed, one in enumerate(sides[0] + sides[1]):
        (one / "config.yaml").write_text(f"network: vgg16\nseed: {seed}\n")
    return {
        "run": page_of(small),
        "two classes": write_report(two.path, two.dataset),
        "three classes, photos": write_report(three.path, three.dataset),
        "100 classes": write_report(many[100].path, many[100].dataset),
        "1,000 classes": write_report(many[1000].path, many[1000].dataset),
        "unfinished": incomplete["running"],
        "stopped": incomplete["stopped"],
        "diverged": incomplete["failed"],
        "comparison": write_side_by_side([small.path, other.path], small.dataset, folder / "comparison.html"),
        "recipes": write_recipes(*sides, folder / "recipes.html"),
        "study": study_page(folder / "study"),
        "own images": write_image_answers(answers, ["x"], CLASSES, "vgg16", "cifar10", folder, folder / "own.html"),
    }


def study_page(folder: Path) -> Path:
    """The page of a study of two keys: the first cells are done, others diverged, were given up, or have not begun."""
    folder.mkdir()
    (folder / "base.yaml").write_text("network: vgg11\n")
    definition = Definition(
        base="base.yaml", grid={"batch": ["64", "128"], "optimizer.learning_rate": ["0.05", "0.1", "1e30"]}, seeds=2
    )
    endings: list[Any] = ["done"] * 7 + ["diverged", "given up", "failed", "waiting"]
    found = []
    for number, (cell, ending) in enumerate(zip(cells(definition, folder / "base.yaml"), endings)):
        done = ending == "done"
        found.append(Found(cell, ending, 0.5 + 0.03 * number if done else None, "" if done else "a word " * 20))
        if done:
            trained = make_run(run_folder(folder, cell), images=40, seed=number)
            assert trained.path.is_dir()
    return study_pages.write(folder, definition, found, summarise(folder, definition, found))


# A thousand classes have the same colours as a hundred.
@pytest.mark.parametrize(
    ("kind", "scheme"),
    [(kind, scheme) for kind in KINDS for scheme in ("light", "dark") if (kind, scheme) != ("1,000 classes", "dark")],
)
def test_axe_finds_nothing(kind: str, scheme: str, pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages[kind], scheme=scheme)
    if kind == "run":
        page.click("#quiz-start")
        for summary in page.locator("summary").all():
            summary.click()
    page.evaluate(f"document.querySelectorAll('{REPEATED}').forEach(one => one.remove())")
    found = Axe().run(page).response["violations"]
    assert found == [], json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found], indent=1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_width_scrolls_sideways(kind: str, pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages[kind])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_matrix_of_many_classes_opens_by_mouse_and_keyboard(pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages["100 classes"])
    box = page.locator("#matrix-picture").bounding_box()
    page.mouse.move(0, 0)
    page.locator("#matrix-picture").scroll_into_view_if_needed()
    page.locator("#matrix-picture").click(position={"x": box["width"] * 0.305, "y": box["height"] * 0.205})
    assert [page.input_value(f"#cell-{name}") for name in ("true", "answer")] == ["20", "30"]
    page.locator("#matrix-picture").press("ArrowDown")
    page.locator("#matrix-picture").press("ArrowLeft")
    page.locator("#matrix-picture").press("Enter")
    assert [page.input_value(f"#cell-{name}") for name in ("true", "answer")] == ["21", "29"]
    page.click("#frequent button >> nth=0")
    count = int(page.inner_text("#frequent tbody tr >> nth=0 >> td >> nth=2"))
    assert len(shown_images(page)) == count > 0


def test_a_thousand_classes_make_no_endless_page(pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages["1,000 classes"])
    assert pages["1,000 classes"].stat().st_size < 15_000_000
    assert page.evaluate("document.querySelector('#matrix-picture').width") <= 2000
    for name in page.eval_on_selector_all("section", "all => all.map(s => s.getAttribute('aria-labelledby'))"):
        page.locator(f"#{name}").scroll_into_view_if_needed()  # a section gets its real height once it has been near
    assert page.evaluate("document.documentElement.scrollHeight") < 25_000


def test_the_quiz_shows_photos_no_sharper_than_the_network_saw_them(pages: dict[str, Path], visit: Any) -> None:
    """At 32 pixels: blocks of one colour each, since the picture is drawn larger."""
    page = visit(pages["three classes, photos"])
    page.click("#quiz-start")
    canvas = page.locator("#quiz-picture")
    page.wait_for_function("document.querySelector('#quiz-picture').getContext('2d').getImageData(4, 4, 1, 1).data[3]")
    script = "c => [c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    side, *values = canvas.evaluate(script)
    pixels = np.array(values).reshape(32, side // 32, 32, side // 32, 4)
    assert (pixels == pixels[:, :1, :, :1]).all()
    assert np.unique(pixels.reshape(-1, 4), axis=0).shape[0] > 100
