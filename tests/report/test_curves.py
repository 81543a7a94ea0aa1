"""The curves of the training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import Page, assert_sound, page_of, section
from tests.support.runs import CLASSES, change_json, make_run
from vgg_ddp.analysis import course
from vgg_ddp.config import load
from vgg_ddp.report import charts
from vgg_ddp.report.sections import curves
from vgg_ddp.run.metrics_log import read_metrics

REPOSITORY = Path(__file__).parents[2]


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
    change_json(run.path / "evaluation/summary.json", warnings=course.warnings(read_metrics(metrics), run.confusion))
    page = page_of(run)
    assert_sound(page)
    assert "The training diverged: at epoch 0.20 its training loss was no number." in page.all("main")[0].text
    assert "training not a number to not a number" in section(page, "training").text
    assert dict(section(page, "speed").table())["Loss"] == "not a number"


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(0.6, 0.0, 0.6), (1.0, 0.0, 1.0), (500.0, 0.0, 500.0), (0.0, 0.0, 1.0), (-2.0, -2.0, 0.0)],
)
def test_a_line_that_never_changes_stands_between_zero_and_itself(value: float, low: float, high: float) -> None:
    drawn = [charts.Line("validation", ([1.0, 2.0, 3.0], [value] * 3), "validation")]
    svg = Page(str(charts.lines("value", "Value", drawn, "value", shares=0 < value <= 1))).root.all("svg")[0]
    frame = json.loads(svg.attributes["data-chart"])["frame"]
    assert frame[-2:] == pytest.approx([low, high])
    assert "120 %" not in svg.text


@pytest.mark.parametrize("peak", [23.0, 138_308.0])
def test_a_loss_that_rises_far_above_its_beginning_does_not_flatten_the_rest(peak: float) -> None:
    """It is drawn on a logarithmic axis, which the chart names; the data points are unchanged."""
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
    (run.path / "config.yaml").write_bytes((REPOSITORY / "configs/vgg11_short.yaml").read_bytes())
    said = (
        "Not measured alike: training with label smoothing and augmentation, on images of 16, 20, 24 and 32 pixels, while the "
        "weights change; validation at 32 pixels without."
    )
    loss, accuracy = section(page_of(run), "training").all("figcaption")[:2]
    assert said in loss.text and said.replace("label smoothing and ", "") in accuracy.text
    hardest = load(
        REPOSITORY / "configs/vgg11_short.yaml", ["loss.hardest=0.25", "data.train_sizes=[]", "augment.cutout=8"]
    )
    assert curves.unlike_sentence(hardest, of_loss=False) == (
        "Not measured alike: training with augmentation, on the 25.0\N{NO-BREAK SPACE}% of each batch with the "
        "largest loss, while the weights change; validation without."
    )


def test_the_norm_of_the_gradient_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "gradient" not in section(page_of(run), "training").text
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    rows = [row | ({"gradient_norm": 0.5 + row["step"]} if row["scope"] == "steps" else {}) for row in rows]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = section(page_of(run), "training").text
    assert f"before it is clipped: at most {rows[-1]['step'] + 0.5}" in said


@pytest.mark.parametrize("skipped", [False, True])
def test_steps_that_were_skipped_are_no_divergence(skipped: bool) -> None:
    row = {"split": "train", "scope": "steps", "step": 1, "epoch": 0.1, "loss": 1.0}
    rows = [row, {**row, "step": 2, "loss": None, **({"skipped": 1} if skipped else {})}, {**row, "step": 3}]
    assert bool(course.of_training(rows, 10)) != skipped
