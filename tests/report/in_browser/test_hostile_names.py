"""Names that try to be markup, all the way from an archive to the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.browsing import IN_BROWSER, come_to_a_cell
from tests.support.pictures import encode, smooth, write_tar
from tests.support.runs import make_run
from vgg_ddp.data.prepare import prepare
from vgg_ddp.report import write_image_answers, write_report, write_side_by_side
from vgg_ddp.report.image_answers import Answer

pytestmark = IN_BROWSER

# 300 characters, quotes, markup, a text-direction override, and a script that runs from right to left.
HOSTILE = [
    "<script>window.harmed=1<\u2215script>",
    '" onmouseover="window.harmed=1',
    "'q' & \u202eevil",
    "x" * 300,
    "שלום",
]
HOSTILE_FILE = '<img src=x onerror="window.harmed=1"> \u202e'


def test_hostile_class_and_file_names_are_text(tmp_path: Path, visit: Any) -> None:
    """All the way: a tar with such names, prepared, evaluated, reported."""
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
