"""The report page: complete, self-contained, true to the predictions, and unharmed by odd or hostile data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from tests.support.pages import Node, assert_sound, page_of, section
from tests.support.runs import ANIMALS, CLASSES, VEHICLES, change_json, degenerate, make_run
from vgg_ddp.analysis.standing import of_classes
from vgg_ddp.errors import UserError
from vgg_ddp.report import write_report


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

    worst = int(np.argmax(support - np.diag(confusion)))  # no class stands out: the one with the most misses is shown
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


def test_page_is_the_same_every_time_and_for_any_order_of_predictions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = write_report(run.path, run.dataset).read_bytes()
    stored = run.path / "evaluation" / "predictions.npz"
    with np.load(stored) as arrays:
        order = np.random.default_rng(3).permutation(len(run.label))
        shuffled = {name: arrays[name][order] for name in arrays.files}
    np.savez(stored, **shuffled)
    assert write_report(run.path, run.dataset).read_bytes() == first


def test_without_pictures_the_page_says_so(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"), pictures=False)
    assert_sound(page)
    of_the_evaluation = ("occlusion", "reliance")  # the evaluation keeps what the network was shown
    assert len(page.all("img")) == sum(len(section(page, name).all("img")) for name in of_the_evaluation) == 9 * 2 + 13
    assert "the pictures cannot be shown" in section(page, "pictures").text
    assert "cifar10 is no longer where the run found it" in section(page, "pictures").text
    assert len(section(page, "pictures").all("li")) == 18
    assert "the pictures cannot be shown" in section(page, "quiz").text


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


@pytest.mark.seconds
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
    assert ("in two answers" in section(page, "story").text) == (name not in ("two classes", "one class"))
    if name == "all right":
        assert "There is none to show." in section(page, "pictures").text
        assert "No image was missed" in section(page, "worst").text
    if name == "a class without images":
        assert section(page, "classes").table()[-1][:5] == ["deer", "no images", "", "", "0 / 0"]


def test_training_may_be_unrecorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json", "environment.json", "config.yaml"):
        (run.path / name).unlink()
    page = page_of(run)
    assert_sound(page)
    assert not page.all("div", **{"class": "note account"})  # no note on a training, as none is recorded
    assert "The run recorded no curves." in section(page, "training").text
    assert dict(section(page, "speed").table())["Training time"] == "not recorded"


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
