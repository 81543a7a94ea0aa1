"""Whether the network is as sure as it should be, in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.pages import assert_sound, page_of, section
from tests.support.runs import make_run, random_logits
from vgg_ddp.report import words


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
