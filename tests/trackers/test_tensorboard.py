"""TensorBoard's event files, read by TensorBoard's own reader, hold what the training logged and the evaluation found."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.rank_processes import Train
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.trackers import named

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
)
HParamsPluginData = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData


@pytest.fixture(scope="module")
def tracked(train: Train) -> Iterator[Path]:
    run = train("tensorboard", "tracking.tensorboard=true", "tracking.mistakes=3", "min_steps=8", "data.validation=0.2")
    assert (run / "tensorboard").is_dir(), (run / "tracking/tensorboard.log").read_text()
    yield run
    shutil.rmtree(run)


@pytest.fixture(scope="module")
def events(tracked: Path) -> Any:
    accumulator = reader.EventAccumulator(str(tracked / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0})
    return accumulator.Reload()


def test_every_figure_of_every_row_is_there(tracked: Path, events: Any) -> None:
    for row in read_metrics(tracked / "metrics.jsonl"):
        for name, value in named(row).items():
            found = [event.value for event in events.Scalars(name) if event.step == row["step"]]
            assert np.float32(value) in found, name


def test_the_evaluation_is_there(tracked: Path, events: Any) -> None:
    evaluation = json.loads((tracked / "evaluation/summary.json").read_text())
    (accuracy,) = events.Scalars("test/accuracy")
    assert accuracy.value == pytest.approx(evaluation["accuracy"])
    (goodput,) = events.Scalars("totals/goodput")
    assert goodput.value == pytest.approx(json.loads((tracked / "summary.json").read_text())["goodput"])
    pictures = events.Tags()["images"]
    assert {"test/confusion_matrix", "test/reliability_diagram"} <= set(pictures)
    assert len([name for name in pictures if name.startswith("test_mistakes/")]) == 3
    for name in pictures:
        (event,) = events.Images(name)
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            assert picture.size == (event.width, event.height)
        width, height = 192, 192
        assert not name.startswith("test_mistakes/") or (event.width == width and event.height > height)  # its caption
    (table,) = events.Tensors("test/per_class/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert len(text.splitlines()) == 2 + len(evaluation["classes"])
    assert json.loads((tracked / "summary.json").read_text())["warnings"] == evaluation["warnings"]
    said = "before_any_figure/text_summary" in events.Tags()["tensors"]
    assert said == bool(evaluation["warnings"])


def test_the_projector_has_images_with_label_and_prediction(tracked: Path, few_digits: Path) -> None:
    (folder,) = (tracked / "tensorboard").glob("*/test_probabilities")
    with np.load(tracked / "evaluation/predictions.npz") as arrays:
        points = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
        np.testing.assert_allclose(points, arrays["probabilities"], atol=1e-6)
        classes = Dataset(few_digits).classes
        expected = [[classes[k], classes[j]] for k, j in zip(arrays["label"], arrays["prediction"])]
    header, *rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
    assert (header, rows) == (["label", "prediction"], expected)
    assert (folder / "sprite.png").is_file()


def test_keys_stand_beside_what_came_of_them(tracked: Path, events: Any) -> None:
    """In the form of TensorBoard's plugin for hyperparameters."""
    content = events.PluginTagToContent("hparams")
    keys = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert keys["optimizer.learning_rate"].number_value == 0.01
    assert keys["network"].string_value == "vgg_tiny"
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert {info.name.tag for info in experiment.metric_infos} >= {"test/accuracy", "test/loss"}
