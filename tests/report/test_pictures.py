"""The pictures of the report, and those that a run keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import decoded, page_of, section
from tests.support.runs import CLASSES, make_run
from vgg_ddp.analysis.confusions import most_missed
from vgg_ddp.report import words, write_report


def test_pictures_are_of_the_samples_they_claim(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = page_of(run)
    for image in section(page, "pictures").all("img") + section(page, "worst").all("img"):
        match = re.fullmatch(r"test image (\d+) of cifar10: (\w+), taken for (\w+)", image.attributes["alt"])
        assert match
        index = int(match[1])
        assert decoded(image)[0, 0].tolist() == [index // 256, index % 256, 99]
        assert (match[2], match[3]) == (CLASSES[run.label[index]], CLASSES[run.prediction[index]])
        assert image.attributes["class"] == "pixelated"

    samples, mistakes = section(page, "pictures").all("ul")
    assert len(samples.all("li")) == len(mistakes.all("li")) == 9
    wrong = np.flatnonzero(run.label != run.prediction)
    surest = wrong[np.argsort(-run.predictions.probabilities.max(axis=1)[wrong], kind="stable")][:9]
    assert [int(image.attributes["alt"].split()[2]) for image in mistakes.all("img")] == surest.tolist()
    sure = words.percent(run.predictions.probabilities[surest[0]].max(), 0).replace(words.NBSP, " ")
    assert f"{CLASSES[run.prediction[surest[0]]]} {sure}" in mistakes.all("li")[0].text
    worst = most_missed(run.confusion)
    for image in section(page, "worst").all("img"):
        index = int(image.attributes["alt"].split()[2])
        assert run.label[index] == worst != run.prediction[index]


def test_the_run_keeps_the_pictures_of_its_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = write_report(run.path, run.dataset)
    drawn, kept = page.read_bytes(), run.path / "evaluation/pictures.json"
    assert kept.stat().st_size < len(drawn)
    page.unlink()
    assert write_report(run.path, None).read_bytes() == drawn
    for damaged in (b"", kept.read_bytes()[:-1], kept.read_bytes().replace(b"abab", b"cdcd", 1)):
        kept.write_bytes(damaged)  # the last is of another checkpoint
        assert write_report(run.path, None) == page.with_name("without_pictures.html")


@pytest.mark.seconds
@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (224, 160)])
def test_pictures_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    run = make_run(tmp_path / "run", shape=shape)
    page = page_of(run)
    image = section(page, "pictures").all("img")[0]
    index = int(image.attributes["alt"].split()[2])
    assert decoded(image).shape[:2] == shape
    small = max(shape) <= 64  # shown pixel by pixel and stored losslessly; the others are noise, on which JPEG is lossy
    expected = run.dataset.split("test").decode(index).astype(int)
    np.testing.assert_allclose(decoded(image), expected, atol=0 if small else 160)
    assert np.abs(decoded(image) - expected).mean() < (1e-9 if small else 25)
    assert ("class" in image.attributes) == small


def test_the_quiz_says_at_which_size_it_shows_its_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shape=(96, 80))
    (run.path / "config.yaml").write_text("data:\n  image_size: 32\n")
    page = page_of(run)
    assert "You see them as the network does, at 32 pixels." in section(page, "quiz").text
    assert json.loads(page.all("script", id="page-data")[0].text_raw)["seen"] == 32
    (run.path / "config.yaml").write_text("data:\n  image_size: 224\n")
    assert "You see them at 80 pixels, the network at 224." in section(page_of(run), "quiz").text


def test_of_many_images_half_are_evenly_chosen_and_mistakes_come_first_in_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg_ddp.report.kept_pictures.MOST_IMAGES", 200)
    run = make_run(tmp_path / "run")
    data = json.loads(page_of(run).all("script", id="page-data")[0].text_raw)
    index, even = np.array(data["index"]), np.linspace(0, len(run.label) - 1, 100).astype(int)
    wrong = run.prediction != run.label
    assert len(index) == 200
    assert set(even) < set(index) and set(index[data["wall"]]) == set(even)
    asked: set[int] = set()
    for pair in data["quiz"]:
        images = index[pair["images"]]
        assert set(run.label[images]) == {pair["first"], pair["second"]}
        assert len(images) == 8  # of each class, a 48th of 200
        asked |= set(images)
    assert wrong[sorted(set(index) - set(even) - asked)].all()
    drawn = write_report(run.path, run.dataset).read_bytes()
    (run.path / "report" / "index.html").unlink()
    assert write_report(run.path, None).read_bytes() == drawn
    monkeypatch.setattr("vgg_ddp.report.kept_pictures.MOST_PIXELS", 50 * 64)
    assert len(json.loads(page_of(run).all("script", id="page-data")[0].text_raw)["index"]) == 50
