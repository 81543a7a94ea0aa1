"""The pages in a real browser: Debian's Chromium without a head, from file://, driven by Playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.pictures import encode, smooth, write_tar
from tests.support.runs import CLASSES, Run, make_run, write_json
from vgg_ddp.data.prepare import prepare
from vgg_ddp.errors import DIVERGED
from vgg_ddp.report import write_image_answers, write_report, write_side_by_side
from vgg_ddp.report.image_answers import Answer
from vgg_ddp.report.page import SECTIONS
from vgg_ddp.report.recipes import write_recipes
from vgg_ddp.study import page as study_pages
from vgg_ddp.study.definition import Definition, cells
from vgg_ddp.study.running import run_folder
from vgg_ddp.study.summary import summarise
from vgg_ddp.study.trials import Found

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; apt-get install chromium"),
]

KINDS = [
    "run",
    "two classes",
    "many classes",
    "photos",
    "unfinished",
    "stopped",
    "diverged",
    "comparison",
    "recipes",
    "study",
    "own images",
]
WIDTHS = [360, 390, 640, 820, 1100, 1280, 2560]  # 640 is a screen of 1,280 at twice the size

# 300 characters, quotes, markup, a text-direction override, and a script that runs from right to left.
HOSTILE = [
    "<script>window.harmed=1<\u2215script>",
    '" onmouseover="window.harmed=1',
    "'q' & \u202eevil",
    "x" * 300,
    "שלום",
]
HOSTILE_FILE = '<img src=x onerror="window.harmed=1"> \u202e'


@dataclass
class Watched:
    """A page and everything that it did wrong."""

    page: Page
    problems: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
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
        if "getImageData" not in text:  # a hint to the test itself, which looks at pixels
            problems.append(text)

    yield go
    for watched in opened:
        watched.page.context.close()
        assert watched.problems == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """10,000 images of noise, the worst there is for the size of the page."""
    run = make_run(tmp_path_factory.mktemp("large") / "run", images=10_000, shape=(32, 32))
    write_report(run.path, run.dataset)
    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    groups = {"vehicles": [CLASSES[k] for k in (0, 1, 8, 9)], "animals": CLASSES[2:8]}
    run = make_run(tmp_path_factory.mktemp("small") / "run", shape=(32, 32), groups=groups)
    write_report(run.path, run.dataset)
    return run


def page_of(run: Run) -> Path:
    return run.path / "report" / "index.html"


def shown_images(page: Page) -> list[int]:
    return [int(k) for k in page.eval_on_selector_all("#cell-images button", "all => all.map(b => b.dataset.image)")]


def come_to_a_cell(page: Page) -> None:
    """Scroll to the images of a cell, which are drawn when they come near."""
    page.locator("#cell").scroll_into_view_if_needed()
    page.wait_for_selector("#cell-images button")


def colour(page: Page, selector: str) -> list[int]:
    """The pixel an eighth of the way into the first canvas that matches."""
    script = """canvas => {
      const k = canvas.width / 8;
      return [...canvas.getContext("2d").getImageData(k, k, 1, 1).data].slice(0, 3);
    }"""
    return page.eval_on_selector(selector, script)


def test_it_is_small_and_quickly_painted(large: Run, visit: Any) -> None:
    path = page_of(large)
    assert path.stat().st_size < 8_000_000
    paints = []
    for _ in range(3):
        page = visit(path)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    assert min(paints) < 1000  # milliseconds; of three, since tests share their machine


def test_a_cell_shows_exactly_its_images(large: Run, visit: Any) -> None:
    page = visit(page_of(large))
    for i, j in ((3, 5), (5, 3), (0, 9), (7, 7)):
        page.click(f'#matrix td[data-true="{i}"][data-answer="{j}"] button')
        expected = np.flatnonzero((large.label == i) & (large.prediction == j))
        while page.is_visible("#cell-more"):
            page.click("#cell-more")
        shown = shown_images(page)
        assert sorted(shown) == expected.tolist()
        sure = large.predictions.probabilities.max(axis=1)[shown]
        assert (np.diff(sure) <= 1e-4).all()
        told = page.eval_on_selector_all("#cell-images button b", "all => all.map(b => parseFloat(b.textContent))")
        assert told == pytest.approx((100 * sure).tolist(), abs=0.51)
        page.wait_for_function(
            "document.querySelector('#cell-images canvas').getContext('2d').getImageData(4, 4, 1, 1).data[3]"
        )
        assert colour(page, "#cell-images canvas") == pytest.approx([shown[0] // 256, shown[0] % 256, 99], abs=6)


def test_a_picture_opens_with_the_network_s_answers(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    come_to_a_cell(page)
    image = shown_images(page)[0]
    page.click("#cell-images button >> nth=0")
    names = page.eval_on_selector_all("#image-answers span", "all => all.map(s => s.textContent)")
    shares = page.eval_on_selector_all("#image-answers b", "all => all.map(b => parseFloat(b.textContent))")
    probabilities = small.predictions.probabilities[image]
    order = np.argsort(-probabilities, kind="stable")[:5]
    assert names == [CLASSES[k] for k in order]
    assert shares == pytest.approx((100 * probabilities[order]).tolist(), abs=0.06)
    page.keyboard.press("Escape")
    assert not page.is_visible("#image")


@pytest.mark.parametrize(
    "row", ["#wall canvas", "#pictures ~ .side figure >> nth=1", "#worst ~ .side", "#data ~ figure >> nth=1", "#cell"]
)
def test_every_picture_opens_with_the_ones_beside_it(row: str, small: Run, visit: Any) -> None:
    """And the answers are those to the picture that is shown."""
    page = visit(page_of(small))
    if row == "#cell":
        come_to_a_cell(page)
    place = page.locator(row if "canvas" in row else f"{row} >> button:has(img), button:has(canvas)")
    place.first.press("Enter")
    count = int(page.inner_text("#image-count").removeprefix("1 of "))
    assert count > 1
    page.click("#image-before")
    assert page.inner_text("#image-count").startswith(f"{count} of ")
    shown = set()
    for _ in range(min(count, 12)):
        page.keyboard.press("ArrowRight")
        number = int(page.inner_text("#image-words").split(" image ")[1].split()[0])
        shown.add(number)
        assert page.inner_text("#image-title").endswith(CLASSES[small.label[number]])
        assert page.inner_text("#image-answers li >> nth=0 >> span") == CLASSES[small.prediction[number]]
        alt = "picture => picture.firstChild.alt ?? picture.firstChild.getAttribute('aria-label')"
        assert page.eval_on_selector("#image-picture", alt).split(" image ")[1].startswith(f"{number} of ")
    assert len(shown) == min(count, 12)
    page.keyboard.press("Escape")
    assert not page.is_visible("#image")


def test_a_list_of_pictures_and_the_matrix_are_one_stop_each(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    come_to_a_cell(page)
    stops = page.evaluate(
        "[...document.querySelectorAll('ul.tiles, #matrix')].map("
        "list => [...list.querySelectorAll('button')].filter(b => b.tabIndex === 0).length)"
    )
    assert set(stops) == {1}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('nav, header')") is None
    page.focus("#pictures ~ .side button >> nth=0")
    for key in ("ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
    place = "[...document.activeElement.closest('ul').querySelectorAll('button')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 7
    page.keyboard.press("Enter")
    assert page.inner_text("#image-count") == "8 of 9"


def test_the_quiz_counts(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    page.click("#quiz-start")
    names = [page.inner_text("#quiz-first"), page.inner_text("#quiz-second")]
    pair = [CLASSES.index(name) for name in names]
    you = network = 0
    asked = int(page.inner_text("#quiz-count").split(" of ")[1].split(",")[0])
    assert asked == 10
    for question in range(asked):
        image = int(page.get_attribute("#quiz-picture", "data-image"))
        truth = pair.index(int(small.label[image]))
        mine = truth if question % 3 else 1 - truth
        you += mine == truth
        scores = small.predictions.probabilities[image, pair]
        network += int(scores[0] < scores[1]) == truth
        page.click(f"#quiz-answers button >> nth={mine}")
        box = page.locator("#quiz-box")
        assert [box.get_attribute(f"data-{name}") for name in ("you", "network", "asked")] == [
            str(you),
            str(network),
            str(question + 1),
        ]
        assert f"the label says {names[truth]}" in page.inner_text("#quiz-told")
        page.click("#quiz-next")
    assert f"You {you} of 10, the network {network}." in page.inner_text("#quiz-told")


def test_every_section_is_there(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    for name, _ in SECTIONS:
        assert page.is_visible(f'section[aria-labelledby="{name}"] h2#{name}')
        page.click(f'nav a[href="#{name}"]')
    assert page.is_visible("#wall canvas")


def test_the_keyboard_alone_reaches_everything(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    wanted = page.evaluate(
        """() => {
          const reachable = 'a[href], button, select, summary, canvas[tabindex], [tabindex="0"]';
          const shown = [...document.querySelectorAll(reachable)].filter(
            e => e.checkVisibility() && !e.disabled && e.tabIndex >= 0);
          shown.forEach((e, k) => (e.dataset.number = k));
          return shown.length;
        }"""
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.dataset.number")
        if number is not None:
            reached.add(int(number))
    assert reached == set(range(wanted))

    page.focus('#matrix td[data-true="0"][data-answer="0"] button')
    for key in ["ArrowDown"] * 3 + ["ArrowRight"] * 5:
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert page.inner_text("#cell-title") == "cat taken for dog"
    expected = np.flatnonzero((small.label == 3) & (small.prediction == 5))
    assert sorted(shown_images(page)) == expected.tolist()

    page.focus("#quiz-start")
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")  # the second answer, then the next picture
        page.keyboard.press("Enter")
    assert page.get_attribute("#quiz-box", "data-asked") == "10"

    page.focus("svg[data-chart]")
    page.keyboard.press("ArrowLeft")
    assert "epoch" in page.inner_text("#training ~ .side output >> nth=0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(kind: str, scheme: str, pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages[kind], scheme=scheme)
    if kind == "run":
        page.click("#quiz-start")
        for summary in page.locator("summary").all():
            summary.click()
    found = Axe().run(page).response["violations"]
    assert found == [], json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found], indent=1)


@pytest.fixture(scope="module")
def pages(small: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each of `KINDS`."""
    folder = tmp_path_factory.mktemp("pages")
    same = {"dataset": small.dataset, "label": small.label}
    other = make_run(folder / "other", seed=8, **same)
    two = make_run(folder / "two", classes=["cat", "dog"], images=120)
    many = make_run(folder / "many", classes=[f"class {k}" for k in range(100)], images=1000)
    photos = make_run(folder / "photos", classes=["cat", "dog", "ship"], images=60, shape=(160, 240))
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
        "many classes": write_report(many.path, many.dataset),
        "photos": write_report(photos.path, photos.dataset),
        "unfinished": incomplete["running"],
        "stopped": incomplete["stopped"],
        "diverged": incomplete["failed"],
        "comparison": write_side_by_side([small.path, other.path], small.dataset, folder / "comparison.html"),
        "recipes": write_recipes(*sides, folder / "recipes.html"),
        "study": study_page(folder / "study"),
        "own images": write_image_answers(answers, ["x"], CLASSES, "vgg16", "cifar10", folder, folder / "own.html"),
    }


def study_page(folder: Path) -> Path:
    """Of a study of two keys whose first cells are done, and whose others diverged, were given up, or have not begun."""
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


def test_a_matrix_of_many_classes_opens_by_mouse_and_keyboard(pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages["many classes"])
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


@pytest.mark.parametrize("kind", KINDS)
def test_no_width_scrolls_sideways(kind: str, pages: dict[str, Path], visit: Any) -> None:
    page = visit(pages[kind])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


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


def test_paper_has_every_section_and_no_buttons(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    page.emulate_media(media="print")
    for name, _ in SECTIONS:
        assert page.is_visible(f"h2#{name}") == (name != "quiz")
    assert not page.is_visible("nav")
    page.set_viewport_size({"width": 700, "height": 1000})  # an A4 page between its margins
    assert page.is_visible("th.wide >> nth=0")
    scrolled = (
        "[...document.querySelectorAll('.scroll, pre, main')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert page.evaluate(scrolled) == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # as the browser does; whatever is folded is printed
    assert page.is_visible("pre") and page.is_visible(".lists")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => !d.open)")


def test_without_javascript_everything_but_the_images_of_cells_is_there(small: Run, visit: Any) -> None:
    page = visit(page_of(small), java_script_enabled=False)
    for name, _ in SECTIONS:
        assert page.is_visible(f"h2#{name}")
    assert page.is_visible("#matrix td >> nth=0")
    assert not page.is_visible("#quiz-start")


def test_the_theme_can_be_chosen(small: Run, visit: Any) -> None:
    page = visit(page_of(small))
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) == light
    page.click("#theme")
    assert page.evaluate(background) != light
    page.reload()
    assert page.evaluate(background) != light
    assert page.inner_text("#theme") == "Theme: dark"


def test_hostile_class_and_file_names_are_text(tmp_path: Path, visit: Any) -> None:
    """Through the whole way: a tar with such names, prepared, evaluated, reported."""
    files = {
        f"{split}/{name}/{k} {HOSTILE_FILE}{'y' * (280 if k == 0 else 3)}.png": encode(smooth(24, 24, 7 * k + n), "PNG")
        for split in ("train", "test")
        for n, name in enumerate(HOSTILE)
        for k in range(6)
    }
    archive = write_tar(tmp_path / "hostile.tar", files)
    dataset = prepare(str(archive), tmp_path / "dataset", lambda text: None, downloads=tmp_path)
    label = dataset.split("test").labels
    run = make_run(
        tmp_path / "run",
        classes=dataset.classes,
        label=label,
        dataset=dataset,
        dataset_name=HOSTILE[0],
        network=HOSTILE[1],
    )
    page = visit(write_report(run.path, dataset))
    come_to_a_cell(page)
    for select, n in (("#cell-true", 0), ("#cell-answer", 0)):
        page.select_option(select, index=n)
    page.click("#cell-images button >> nth=0")
    assert "<img src=" in page.inner_text("#image")
    page.keyboard.press("Escape")
    page.click("#quiz-start")
    page.click("#quiz-answers button >> nth=0")
    body = page.inner_text("body")
    for name in (HOSTILE[0], HOSTILE[1], "'q' & \ufffdevil", HOSTILE[3], "\u2068שלום\u2069"):
        assert name in body
    assert "\u202e" not in page.content()
    assert page.evaluate("window.harmed") is None
    assert page.evaluate("document.querySelectorAll('img[src=x], [onmouseover]').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    own = Answer.of(
        f"{HOSTILE_FILE}/a.png", None, run.predictions.probabilities[0], smooth(40, 40, 1), smooth(32, 32, 1)
    )
    other = write_image_answers(
        [own], [HOSTILE_FILE], dataset.classes, HOSTILE[0], HOSTILE[1], tmp_path / HOSTILE[2], tmp_path / "own.html"
    )
    page = visit(other)
    assert "<img src=x onerror=" in page.inner_text("body")
    twin = make_run(tmp_path / HOSTILE[2], classes=dataset.classes, label=label, dataset=dataset, seed=9)
    page = visit(write_side_by_side([run.path, twin.path], dataset, tmp_path / "comparison.html"))
    assert "'q' & \ufffdevil" in page.inner_text("h1")
    assert page.evaluate("window.harmed") is None
