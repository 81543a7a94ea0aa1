"""The report page: complete, self-contained, true to the predictions, and unharmed by odd or hostile data."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from tests.support.runs import ANIMALS, CLASSES, VEHICLES, Run, change_json, make_run, random_logits
from vgg_ddp.analysis import duplicates
from vgg_ddp.analysis.confusions import most_missed
from vgg_ddp.analysis.standing import of_classes
from vgg_ddp.errors import UserError
from vgg_ddp.report import charts, words, write_report

SECTIONS = [
    "story",
    "training",
    "pictures",
    "classes",
    "confusion",
    "worst",
    "quiz",
    "groups",
    "calibration",
    "abstention",
    "data",
    "dynamics",
    "speed",
    "configuration",
    "environment",
]
REPOSITORY = Path(__file__).parents[2]
VOID = {"meta", "img", "br"}


@dataclass
class Node:
    """An element of the page: enough of a tree to look things up in."""

    tag: str
    attributes: dict[str, str]
    parts: list[str | Node] = field(default_factory=list)

    def all(self, tag: str | None = None, **attributes: str) -> list[Node]:
        """Every element below with this tag and these attributes, in the order of the page."""
        found = []
        for part in self.parts:
            if isinstance(part, Node):
                if (tag in (None, part.tag)) and all(part.attributes.get(k) == v for k, v in attributes.items()):
                    found.append(part)
                found += part.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        """The text below, white space and no-break spaces folded."""
        return " ".join(self.text_raw.split())

    @property
    def text_raw(self) -> str:
        return "".join(part if isinstance(part, str) else part.text_raw for part in self.parts)

    def table(self) -> list[list[str]]:
        """The cells of each row of the body, empty ones (the bars) left out."""
        rows = [row for body in self.all("tbody") for row in body.all("tr")]
        cells = [[cell for cell in row.all() if cell.tag in ("th", "td")] for row in rows]
        return [[cell.text for cell in row if cell.attributes.get("class") != "bar"] for row in cells]


class Page(HTMLParser):
    """Parses strictly enough: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], "an element was left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def page_of(run: Run, pictures: bool = True) -> Node:
    return Page(write_report(run.path, run.dataset if pictures else None).read_text(encoding="utf-8")).root


def decoded(image: Node) -> np.ndarray:
    """The pixels of an <img>."""
    png = base64.b64decode(image.attributes["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)))


def section(page: Node, name: str) -> Node:
    return page.all("section", **{"aria-labelledby": name})[0]


def assert_sound(page: Node) -> None:
    """What holds for every page, whatever the data."""
    elements = page.all()
    assert not page.all("link")
    for element in elements:
        for key, value in element.attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#"))
    *stored, script = page.all("script")
    assert {element.attributes["type"] for element in stored} <= {"application/json", "text/plain"}
    digest = base64.b64encode(hashlib.sha256(script.text_raw.encode()).digest()).decode()
    styles = "".join(style.text_raw for style in page.all("style"))
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles + "".join(e.attributes.get("style", "") for e in elements))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy == f"default-src 'none'; {allowed}"
    assert page.all("html")[0].attributes["lang"].startswith("en")

    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [element.attributes.get("href", "") for element in elements]
    wanted = {link[1:] for link in links if link.startswith("#")}
    for element in elements:
        wanted.update(re.findall(r"url\(#([^)]+)\)", " ".join(element.attributes.values())))
        wanted.update(element.attributes.get("aria-labelledby", "").split())
    assert wanted <= set(ids)

    assert [s.attributes["aria-labelledby"] for s in page.all("section")] == SECTIONS
    headings = [element for element in elements if re.fullmatch("h[1-6]", element.tag)]
    assert [heading.tag for heading in headings if heading.tag != "h3"] == ["h1"] + ["h2"] * len(SECTIONS)
    assert all(image.attributes["alt"] for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"]


def test_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert write_report(run.path, run.dataset) == run.path / "report" / "index.html"
    page = page_of(run)
    assert_sound(page)
    assert len(section(page, "training").all("svg")) == 4
    assert len(section(page, "calibration").all("svg")) == 2
    assert len(section(page, "data").all("li")) > 0
    assert len(section(page, "pictures").all("img")) == 18
    assert len(section(page, "worst").all("img")) == 9
    assert "batch: 256" in section(page, "configuration").all("details")[0].text
    environment = dict(section(page, "environment").table())
    assert environment["versions / torch"] == "2.14.1"
    assert environment["commit"] == "not recorded"


def test_every_title_heading_and_caption_names_the_data_set(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", dataset_name="handwritten digits"))
    captions = [element for element in page.all() if element.tag in ("title", "h1", "h2", "figcaption")]
    assert len(captions) >= 17
    assert all("handwritten digits" in caption.text for caption in captions)
    assert len(page.all("figure")) == len(page.all("figcaption"))


def own_kind(k: int) -> list[int]:
    group = ANIMALS if CLASSES[k] in ANIMALS else VEHICLES
    return [CLASSES.index(name) for name in group]


def test_numbers_equal_scikit_learn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", groups={"animals": ANIMALS, "vehicles": VEHICLES})
    page = page_of(run)
    accuracy = accuracy_score(run.label, run.prediction)
    assert page.all("h1")[0].text.endswith(f"{100 * accuracy:.1f} %")
    figures = dict(section(page, "speed").table())
    assert figures["Top-1 accuracy"] == f"{100 * accuracy:.2f} %"
    scores = run.predictions.probabilities
    top5 = top_k_accuracy_score(run.label, scores, k=5)
    assert figures["Top-5 accuracy"] == f"{100 * top5:.2f} %"
    assert float(figures["Loss"]) == pytest.approx(log_loss(run.label, scores), abs=6e-5)
    assert figures["Training time"] == "3 min 36 s"
    assert figures["Training speed, images/s"] == "1,532"
    assert figures["Share of time waiting for data"] == "0.42 %"
    assert figures["Peak memory"] == "3.0 GiB"

    confusion = confusion_matrix(run.label, run.prediction)
    shown = [row[1:] for row in section(page, "confusion").all("table")[0].table()]
    expected = 100 * confusion_matrix(run.label, run.prediction, normalize="true")
    np.testing.assert_allclose(np.array(shown, dtype=float), expected, atol=0.05 + 1e-9)

    precision, recall, f1, support = precision_recall_fscore_support(run.label, run.prediction)
    rows = section(page, "classes").all("table")[0].table()
    order = np.argsort(-recall, kind="stable")
    assert [row[0] for row in rows] == [CLASSES[k] for k in order]
    for row, k in zip(rows, order, strict=True):
        low, high = binomtest(int(confusion[k, k]), int(support[k])).proportion_ci(method="wilson")
        assert row[1:] == [
            f"{100 * recall[k]:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f} %",
            "",
            f"{100 * np.isin(run.prediction[run.label == k], own_kind(k)).mean():.1f} %",
            f"{confusion[k, k]} / {support[k]}",
            f"{100 * precision[k]:.1f} %",
            f"{100 * f1[k]:.1f} %",
        ]

    worst = int(np.argmax(support - np.diag(confusion)))  # none stands out: the one with most misses
    assert not of_classes(confusion).worst
    missed = run.prediction[(run.label == worst) & (run.prediction != worst)]
    assert f"{len(missed)} of {support[worst]} images of {CLASSES[worst]}" in section(page, "worst").text
    answers = section(page, "worst").all("table")[0].table()
    counts = sorted(np.bincount(missed)[np.unique(missed)], reverse=True)
    assert [int(row[1]) for row in answers] == counts
    together = [float(row[3].split()[0]) for row in answers]
    assert together == pytest.approx(100 * np.cumsum(counts) / len(missed), abs=0.05)
    assert answers[-1][3] == "100 %"

    rows = section(page, "story").table()
    for k, row in zip((1, 2, 3, 5), rows, strict=True):
        share = top_k_accuracy_score(run.label, scores, k=k)
        assert row == [str(k), f"{100 * share:.1f} %"]
    wrong = run.label != run.prediction
    kept = np.array([run.prediction[i] in own_kind(run.label[i]) for i in np.flatnonzero(wrong)])
    assert f"Of its {wrong.sum()} mistakes {100 * kept.mean():.0f} % keep the kind" in section(page, "story").text

    is_animal = np.isin(np.array(CLASSES), ANIMALS)
    of_animals = is_animal[run.prediction][is_animal[run.label]].mean()
    assert f"nimals for animals {100 * of_animals:.1f} %" in section(page, "story").text
    assert {row[0]: row[1] for row in section(page, "groups").all("table")[0].table()}["animals"] == (
        f"{100 * of_animals:.1f} %"
    )


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


def test_page_is_the_same_every_time_and_for_any_order_of_predictions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = write_report(run.path, run.dataset).read_bytes()
    stored = run.path / "evaluation" / "predictions.npz"
    with np.load(stored) as arrays:
        order = np.random.default_rng(3).permutation(len(run.label))
        shuffled = {name: arrays[name][order] for name in arrays.files}
    np.savez(stored, **shuffled)
    assert write_report(run.path, run.dataset).read_bytes() == first


def test_where_classes_are_uneven_the_means_over_classes_come_first(tmp_path: Path) -> None:
    label = np.repeat([0, 1], [90, 10])
    prediction = np.zeros_like(label)  # 90 % of all images, half of each class
    run = make_run(tmp_path / "run", ["common", "rare"], label, prediction)
    rows = [
        [cell.text for cell in row.parts if isinstance(cell, Node)] for row in section(page_of(run), "speed").all("tr")
    ]
    assert "Balanced accuracy" in rows[0][0] and rows[0][1].startswith("50.00")
    f1 = f1_score(label, prediction, average="macro", zero_division=0)
    assert "Macro F1" in rows[1][0] and rows[1][1].startswith(f"{100 * f1:.2f}")
    assert [row[1][:5] for row in rows if row[0] == "Top-1 accuracy"] == ["90.00"]
    change_json(run.path / "evaluation/summary.json", uneven=False)
    assert section(page_of(run), "speed").all("tr")[0].text.startswith("Loss")


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


def test_without_pictures_the_page_says_so(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"), pictures=False)
    assert_sound(page)
    assert not page.all("img")
    assert "the pictures cannot be shown" in section(page, "pictures").text
    assert "cifar10 is no longer where the run found it" in section(page, "pictures").text
    assert len(section(page, "pictures").all("li")) == 18
    assert "the pictures cannot be shown" in section(page, "quiz").text


@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (224, 160)])
def test_pictures_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    run = make_run(tmp_path / "run", shape=shape)
    page = page_of(run)
    image = section(page, "pictures").all("img")[0]
    index = int(image.attributes["alt"].split()[2])
    assert decoded(image).shape[:2] == shape
    small = (
        max(shape) <= 64
    )  # shown pixel by pixel, and stored without loss; the others hold noise, of which JPEG loses some
    expected = run.dataset.split("test").decode(index).astype(int)
    np.testing.assert_allclose(decoded(image), expected, atol=0 if small else 160)
    assert np.abs(decoded(image) - expected).mean() < (1e-9 if small else 25)
    assert ("class" in image.attributes) == small


def test_names_that_are_numbers_are_set_off_from_figures(tmp_path: Path) -> None:
    """In place of "0 0 %", and of "an 8 139 times"."""
    label = np.repeat(np.arange(10), 60)
    prediction = np.where(np.random.default_rng(2).random(600) < 0.6, label, (label + 1) % 10)
    prediction = np.where(label == 9, 9, np.where(label == 0, 1, prediction))
    run = make_run(tmp_path / "run", [str(k) for k in range(10)], label=label, prediction=prediction)
    cards = section(page_of(run), "story").all("dd")
    assert re.match(r"“9” 100 % “0” 0 %", cards[0].text)
    assert not any(re.search(r"(?<![“\d.,])\b\d \d", card.text) for card in cards)


def test_fallbacks_stand_above_the_story(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change_json(run.path / "environment.json", fallbacks=["no GPU: trained on the CPU", "<i>DALI</i> is absent"])
    main = page_of(run).all("main")[0]
    note, story = [part for part in main.parts if isinstance(part, Node)][:2]
    assert note.text == "Note: no GPU: trained on the CPU <i>DALI</i> is absent"
    assert story.attributes["aria-labelledby"] == "story"


HOSTILE = [
    "<script>alert(1)</script>",
    "$x^2$",
    "{{ 7 * 7 }}",
    '" onmouseover="alert(1)',
    "</title></style><img src=x onerror=alert(1)>",
    "\u202eevil\x1b[31m\udcff",
]


@pytest.mark.parametrize("count", [6, 24])
def test_hostile_names_appear_only_escaped(tmp_path: Path, count: int) -> None:
    classes = [f"{HOSTILE[k % 6]}{k // 6 or ''}" for k in range(count)]
    run = make_run(
        tmp_path / "run",
        classes=classes,
        dataset_name=HOSTILE[4],
        network=HOSTILE[0],
        groups={HOSTILE[3]: classes[:2]},
    )
    change_json(run.path / "environment.json", fallbacks=[HOSTILE[0]], command=HOSTILE[4])
    (run.path / "config.yaml").write_text(f"network: {HOSTILE[0]}\n</pre>{HOSTILE[4]}\n")
    page = page_of(run)
    assert_sound(page)
    raw = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert raw.count("<script") == len(page.all("script"))
    assert "<img src=x" not in raw
    assert "\u202e" not in raw
    assert "\x1b" not in raw
    shown = {row[0] for row in section(page, "classes").all("table")[0].table()}
    assert {*HOSTILE[:5], "\ufffdevil\ufffd[31m\ufffd"} <= shown
    assert page.all("title")[0].text.startswith("<script>alert(1)</script> on </title></style><img")


def degenerate(name: str) -> dict[str, Any]:
    """Arguments of `make_run` for runs at the edges of what can come."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 10, 200)
    many = rng.integers(0, 100, 2000)
    return {
        "two classes": {"classes": ["cat", "dog"]},
        "one class": {"classes": ["cat"]},
        "a class without images": {"label": np.where(label == 4, 5, label)},
        "all right": {"label": label, "prediction": label},
        "all wrong": {"label": label, "prediction": (label + 1) % 10},
        "one image": {"label": label[:1], "prediction": label[:1] * 0 + 9},
        "one epoch": {"epochs": 1},
        "many epochs": {"epochs": 30},
        "many classes": {
            "classes": [f"a_long_class_name_that_goes_on_and_on_{k:03}" for k in range(100)],
            "label": many,
            "prediction": np.where(rng.random(2000) < 0.5, many, rng.integers(0, 100, 2000)),
        },
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two classes", "is missed it is always taken for"),
        ("one class", "names every one correctly. The only class with images is at 100 %."),
        ("a class without images", "No image shows a deer, so nothing is known there."),
        ("all right", "Of 200 test images of cifar10, vgg16 names every one correctly. Every class is at 100 %."),
        ("all wrong", "Of 200 test images of cifar10, vgg16 names none correctly. Every class is at 0 %."),
        ("one image", "Of 1 test image of cifar10, vgg16 names none correctly."),
        ("one epoch", "together"),
        ("many epochs", "together"),
        ("many classes", "together"),
    ],
)
@pytest.mark.filterwarnings("ignore:A single label was found")  # from scikit-learn, for the run with one class
def test_degenerate_runs(tmp_path: Path, name: str, said: str) -> None:
    run = make_run(tmp_path / "run", **degenerate(name))
    page = page_of(run)
    assert_sound(page)
    assert said in section(page, "story").text
    if name == "all right":
        assert "There is none to show." in section(page, "pictures").text
        assert "No image was missed" in section(page, "worst").text
    if name == "a class without images":
        assert section(page, "classes").table()[-1][:5] == ["deer", "no images", "", "", "0 / 0"]


def test_many_classes_show_a_picture_and_the_most_frequent_confusions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **degenerate("many classes"))
    confusion = section(page_of(run), "confusion")
    assert len(confusion.all("canvas")) == 1
    rows = confusion.table()
    mistakes = run.confusion * (1 - np.eye(100, dtype=int))
    assert [int(row[2]) for row in rows] == np.sort(mistakes.ravel())[::-1][:20].tolist()
    for true, predicted, images, share in rows:
        i, j = int(true[-3:]), int(predicted[-3:])
        assert mistakes[i, j] == int(images)
        assert float(share.split()[0]) == pytest.approx(100 * mistakes[i, j] / run.confusion[i].sum(), abs=0.05)


def test_training_may_be_unrecorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json", "environment.json", "config.yaml"):
        (run.path / name).unlink()
    page = page_of(run)
    assert_sound(page)
    assert not page.all("div", **{"class": "note account"})  # no word on a training that there was none of
    assert "The run recorded no curves." in section(page, "training").text
    assert dict(section(page, "speed").table())["Training time"] == "not recorded"


def test_metrics_without_validation_cut_off_and_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    metrics = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    # A resumed run writes its last epoch a second time; the second time counts.
    again = [{**row, "loss": 0.125} for row in train if row["step"] == 30 and row["scope"] == "epoch"]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in train + again) + '{"split": "train", "sc')
    training = section(page_of(run), "training")
    assert "The run held out no images for validation." in training.text
    assert "cut off and are left out: 1." in training.text
    assert "training 1.500 to 0.125" in training.text
    assert "validation 1" not in training.text


def test_diverged_training_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", loss=float("nan"))
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(re.sub(r'"loss": [\d.]+', '"loss": NaN', metrics.read_text()))
    page = page_of(run)
    assert_sound(page)
    assert "The training diverged: at epoch 0.20 its training loss was no number." in page.all("main")[0].text
    assert "training not a number to not a number" in section(page, "training").text
    assert dict(section(page, "speed").table())["Loss"] == "not a number"


def test_a_training_that_went_astray_says_so_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    metrics = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if row["split"] == "validation" and row["epoch"] == 2:
            row["loss"] = 138308.0
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = next(part for part in page_of(run).all("main")[0].parts if isinstance(part, Node))
    assert "its validation loss rose to 1.383e+05 at epoch 2.00, where guessing gives 2.30" in first.text


def test_a_network_that_learned_nothing_says_so_first(tmp_path: Path) -> None:
    label = np.arange(400) % 10
    run = make_run(tmp_path / "run", label=label, prediction=label * 0 + 3)
    first = next(part for part in page_of(run).all("main")[0].parts if isinstance(part, Node))
    assert "learned nothing that these 400 images show: it names 10.0 % correctly" in first.text
    well = make_run(tmp_path / "well", label=label, prediction=label)
    assert "Before any figure" not in page_of(well).all("main")[0].text


@pytest.mark.parametrize("peak", [23.0, 138_308.0])
def test_a_loss_that_rises_far_above_its_beginning_does_not_flatten_the_rest(peak: float) -> None:
    """On a logarithmic axis, which the chart names; the points stay what they are."""
    drawn = [charts.Line("training", ([1.0, 2.0, 3.0], [2.3, peak, 1.9]), "train")]
    svg = Page(str(charts.lines("loss", "Loss", drawn, "loss"))).root.all("svg")[0]
    chart = json.loads(svg.attributes["data-chart"])
    assert chart["lines"][0]["y"] == [2.3, float(f"{peak:.5g}"), 1.9]
    logarithmic = peak > 100
    assert (
        chart["logarithmic"]
        == logarithmic
        == ("logarithmic" in svg.text)
        == ("logarithmic" in svg.attributes["aria-label"])
    )
    _, _, top, bottom, _, low, high = chart["frame"]
    heights = [
        float(y)
        for y in re.findall(r"[ML][\d.]+ ([\d.]+)", svg.all("path", **{"class": "line train"})[0].attributes["d"])
    ]
    scale = np.log10 if logarithmic else np.asarray
    assert heights == pytest.approx(bottom - (bottom - top) * (scale([2.3, peak, 1.9]) - low) / (high - low), abs=0.06)
    assert abs(heights[0] - heights[2]) > 2  # pixels: they can be told apart


def test_classes_over_the_epochs_are_drawn_where_the_run_recorded_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert not section(page_of(run), "classes").all("svg")
    metrics = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if row["split"] == "validation":
            row["class_accuracy"] = [row["epoch"] / 10 + k / 100 for k in range(9)] + [None]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = section(page_of(run), "classes")
    names = [span.text for span in classes.all("div", **{"class": "key"})[0].all("span")]
    worst = [row[0] for row in classes.table()][::-1][:4]
    assert names == [name for name in worst if name != "truck"]
    assert (
        "on 40 validation images, about 4 of each class: other images, and fewer, than those of the table"
        in classes.text
    )
    chart = json.loads(classes.all("svg")[0].attributes["data-chart"])
    assert chart["lines"][0]["y"] == pytest.approx([epoch / 10 + CLASSES.index(names[0]) / 100 for epoch in (1, 2, 3)])


def test_the_curves_say_why_training_and_validation_are_not_measured_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Not measured alike" not in section(page_of(run), "training").text
    (run.path / "config.yaml").write_bytes((REPOSITORY / "configs/quickstart.yaml").read_bytes())
    said = (
        "Not measured alike: training with label smoothing and augmentation, on images of 16, 20, 24 and 32 pixels, while the "
        "weights change; validation at 32 pixels without."
    )
    loss, accuracy = section(page_of(run), "training").all("figcaption")[:2]
    assert said in loss.text and said.replace("label smoothing and ", "") in accuracy.text


def test_the_quiz_says_at_which_size_it_shows_its_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shape=(96, 80))
    (run.path / "config.yaml").write_text("data:\n  image_size: 32\n")
    page = page_of(run)
    assert "You see them as the network does, at 32 pixels." in section(page, "quiz").text
    assert json.loads(page.all("script", id="page-data")[0].text_raw)["seen"] == 32
    (run.path / "config.yaml").write_text("data:\n  image_size: 224\n")
    assert "You see them at 80 pixels, the network at 224." in section(page_of(run), "quiz").text


def test_of_many_images_the_page_carries_mistakes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_ddp.report.kept_pictures.MOST_IMAGES", 200)
    run = make_run(tmp_path / "run")
    data = json.loads(page_of(run).all("script", id="page-data")[0].text_raw)
    assert len(data["index"]) == 200
    assert set(np.flatnonzero(run.prediction != run.label)) < set(data["index"])
    monkeypatch.setattr("vgg_ddp.report.kept_pictures.MOST_PIXELS", 50 * 64)
    assert len(json.loads(page_of(run).all("script", id="page-data")[0].text_raw)["index"]) == 50


def test_a_network_of_nothing_but_nan_is_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", logits=np.full((400, 10), np.nan, dtype=np.float32))
    page = page_of(run)
    assert_sound(page)
    assert "Its probabilities are no numbers." in section(page, "calibration").text
    data = page.all("script", id="page-data")[0].text_raw
    assert "NaN" not in data


def test_a_modest_network_is_told_what_made_it_so_and_how_much_is_noise(tmp_path: Path) -> None:
    label = np.random.default_rng(1).integers(0, 10, 400)
    run = make_run(tmp_path / "run", label=label, logits=0.1 * random_logits(label, label, 10))
    assert "label smoothing" not in section(page_of(run), "calibration").text
    (run.path / "config.yaml").write_text("loss:\n  label_smoothing: 0.1\n")
    said = section(page_of(run), "calibration").text
    assert "100 % right: too modest. Its calibration error (ECE) is" in said
    assert "label smoothing of 0.1, to be 91 % sure of every answer" in said
    noise = json.loads((run.path / "evaluation/summary.json").read_text())["calibration"]["noise"]
    assert f"seldom more than {words.percent(noise['highest_error'])}.".replace(words.NBSP, " ") in said
    assert "on 400 test images of cifar10: calibration error" in said


def test_the_accuracy_on_images_without_a_double_in_training_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", images=400)
    summary = json.loads((run.path / "evaluation/summary.json").read_text())
    doubles = list(range(40))
    found = {"looked_at": 400, "of": 400, "test_images": 40, "sample_index": doubles, "other_labels": 2, "pairs": []}
    none = {"looked_at": 200, "of": 400, "test_images": 0, "sample_index": [], "other_labels": 0, "pairs": []}
    change_json(
        run.path / "evaluation/summary.json",
        data={**summary["data"], "near_duplicates": {"train": found, "test": none}},
    )
    right = run.label == run.prediction
    said = section(page_of(run), "data").text
    shares = [
        f"{100 * right[40:].mean():.1f} % of the 360 without",
        f"{100 * right[:40].mean():.1f} % of the 40 with one.",
    ]
    assert all(share in said for share in shares)
    assert "Compared were 200 of 400 test images and 400 of 400 training images, evenly spread." in said


def test_a_damaged_evaluation_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stored = run.path / "evaluation" / "predictions.npz"
    stored.write_bytes(stored.read_bytes()[:500])
    with pytest.raises(UserError, match=r"predictions\.npz is damaged .*; run: vgg-ddp evaluate"):
        write_report(run.path, None)
    stored.unlink()
    with pytest.raises(UserError, match=r"has no predictions\.npz; run: vgg-ddp evaluate"):
        write_report(run.path, None)
    (run.path / "evaluation" / "summary.json").write_text('{"dataset": "cif')
    with pytest.raises(UserError, match=r"summary\.json is damaged .*; run: vgg-ddp evaluate"):
        write_report(run.path, None)


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    page = write_report(run.path, None)
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"index\.html cannot be written: No space left on device"):
        write_report(run.path, run.dataset)
    assert page.read_bytes() == before
    assert list(page.parent.iterdir()) == [page]


def test_needs_neither_torch_nor_matplotlib() -> None:
    check = "import sys, vgg_ddp.report; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def story_of(confusion: np.ndarray) -> str:
    classes = [f"c{k}" for k in range(len(confusion))]
    return words.extremes_sentence(classes, confusion, of_classes(confusion)).replace(words.NBSP, " ")


def test_best_and_worst_are_said_only_where_they_are_more_than_chance() -> None:
    def confusion(*right: int, images: int = 200) -> np.ndarray:
        wrong = np.roll(np.diag([images - count for count in right]), 1, axis=1)
        return np.diag(right) + wrong

    assert story_of(confusion(160, 165, 158, 163)) == (
        "No class is recognised better or worse than the others by more than chance: they lie between 79.0 % and 82.5 %."
    )
    assert story_of(confusion(160, 165, 100, 163)) == (
        "It recognises “c1” best (82.5 %; “c3” and “c0” are too close to be told from it) and “c2” worst (50.0 %)."
    )
    assert story_of(confusion(185, 184, 186, 100, 103)).endswith(
        "and “c3” worst (50.0 %; “c4” is too close to be told from it)."
    )
    tiny = confusion(160, 165, 158, 163)
    tiny[0] = [0, 1, 0, 0]
    assert "“c0” worst" not in story_of(tiny)
    assert story_of(tiny).endswith("Fewer than 10 images show “c0”: too few to call a class best or worst.")


def test_the_worst_class_says_how_it_is_worse(tmp_path: Path) -> None:
    label = np.arange(400) % 4
    prediction = np.where((label == 2) & (np.arange(400) % 8 == 2), 3, label)
    page = page_of(make_run(tmp_path / "run", ["cat", "dog", "elk", "fox"], label, prediction))
    worst = section(page, "worst")
    assert worst.all("h2")[0].text.startswith("The worst class: elk")
    assert (
        "50.0 % of its images are named correctly, of the others 100 %: more than chance (p below 0.0001" in worst.text
    )
    stands = {row[0]: row[3] for row in section(page, "classes").table()}
    assert stands == {"cat": "better", "dog": "better", "fox": "better", "elk": "worse"}
    assert "always taken for a fox (50 misses)" in worst.text


def test_what_needs_no_network_stands_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    train, test = (np.stack([run.dataset.split(name).decode(k) for k in range(400)]) for name in ("train", "test"))
    answers = run.dataset.split("train").labels[
        duplicates.nearest(duplicates.grey(test), duplicates.grey(train)).others[:, 0]
    ]
    share = accuracy_score(run.label, answers)
    most = np.bincount(run.label).max() / 400
    said = section(page_of(run), "story").text
    assert f"Guessing is right for 10.0 %, always answering the most frequent class for {100 * most:.1f} %" in said
    assert f"of the most alike of 400 training images (8 x 8 grey pixels) for {100 * share:.1f} %" in said


def test_what_is_remembered_is_told_from_what_is_learned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "does it remember" not in section(page_of(run), "story").text
    summary, accuracy = run.path / "evaluation/summary.json", accuracy_score(run.label, run.prediction)
    change_json(summary, training_images={"images": 2000, "accuracy": 0.95})
    said = section(page_of(run), "story").text
    assert "With its final weights it names 95.0 % of 2,000 training images, without augmentation, and " in said
    assert f"{100 * accuracy:.1f} % of 400 test images: {100 * (0.95 - accuracy):+.2f} points" in said
    assert "it overfits by that much. Even of its training images it misses some" in said
    change_json(summary, training_images={"images": 2000, "accuracy": accuracy + 0.01})
    assert "no sign of overfitting" in section(page_of(run), "story").text


def test_misses_sentence_reads_as_a_sentence() -> None:
    classes = ["cat", "deer", "dog", "frog", "ship"]
    confusion = np.diag([0, 9, 9, 9, 9]) * 100
    confusion[0] = [100, 12, 41, 15, 11]
    assert words.misses_sentence(classes, confusion, 0).replace(words.NBSP, " ") == (
        "When a cat is missed it is taken for a dog (52 %), a frog (19 %), a deer (15 %): together 86 % of its 79 misses."
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat", "a cat"),
        ("airplane", "an airplane"),
        ("unicycle", "a unicycle"),
        ("hourglass", "an hourglass"),
        ("8", "“8”"),
        ("no", "“no”"),
        ("bus", "a bus"),
        ("roses", "“roses”"),
        ("n01440764", "“n01440764”"),
        ("Baum", "“Baum”"),
    ],
)
def test_named(name: str, said: str) -> None:
    assert words.named(name) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.786, "78.6 %"),
        (0.99996, "99.996 %"),
        (0.0004, "0.04 %"),
        (None, "not recorded"),
    ],
)
def test_percent_rounds_to_all_or_none_only_where_true(share: float | None, said: str) -> None:
    assert words.percent(share).replace(words.NBSP, " ") == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.99, "1 min 0 s"), (216.4, "3 min 36 s"), (7265, "2 h 1 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert words.duration(seconds).replace(words.NBSP, " ") == said
