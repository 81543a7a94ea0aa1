"""A W&B run holds what the training logged and the evaluation found, and is one run however often it is continued."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.support.rank_processes import Train, step, wait_until
from tests.support.run_folders import stop
from tests.trackers.conftest import (
    Start,
    history,
    latest,
    status,
    wait_until_gone,
    wandb_records,
    wandb_segments,
)
from vgg_ddp.config import load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import EXIT_USER_ERROR
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.trackers import dashboard, named
from vgg_ddp.trackers.media import PREDICTIONS

pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed")
WORDS = ("tracking.wandb=offline", "tracking.artifacts=true", "tracking.group=tests", "tracking.mistakes=5")
TWO_EPOCHS = ("min_steps=16", "data.validation=0.2")


@pytest.fixture(scope="module")
def tracked(train: Train, runs: Path) -> Iterator[Path]:
    """Two epochs of eight steps on two ranks."""
    run = train("tracked", *WORDS, *TWO_EPOCHS, "analysis.budget=full", size=2)
    assert status(run) == [], (run / "tracking/wandb.log").read_text()
    yield run
    shutil.rmtree(run)


@pytest.fixture(scope="module")
def records(tracked: Path) -> list[dict[str, Any]]:
    (segment,) = wandb_segments(tracked)
    return wandb_records(segment)


@pytest.fixture(scope="module")
def final(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What was logged at the last step, including the evaluation."""
    logged = history(records)
    return logged[max(logged)]


def test_every_figure_of_every_row_is_there(tracked: Path, few_digits: Path, records: list[dict[str, Any]]) -> None:
    rows = read_metrics(tracked / "metrics.jsonl")
    assert {(row["split"], row["scope"]) for row in rows} == {
        ("train", "steps"),
        ("train", "epoch"),
        ("validation", "epoch"),
    }
    logged = history(records)
    assert sorted(logged) == list(range(1, 17))
    assert {name for name in logged[16] if "seconds" in name} == {"throughput/training_seconds"}
    assert sum(name.startswith("validation_class/") for name in logged[16]) == 10
    expected: dict[int, dict[str, float]] = {}
    for row in rows:
        figures = {key: value for key, value in row.items() if isinstance(value, float)}
        assert len(named(row)) >= len(figures)
        expected.setdefault(row["step"], {}).update(named(row, Dataset(few_digits).classes))
    for at, values in expected.items():
        assert {name: logged[at][name] for name in values} == pytest.approx(values, rel=1e-9)


def test_each_ranks_own_figures_arrive(tracked: Path, records: list[dict[str, Any]]) -> None:
    (row, *_) = [row for row in read_metrics(tracked / "metrics.jsonl") if row["scope"] == "steps"]
    for name in ("images_per_second", "data_wait", "memory_bytes"):
        assert len(row["ranks"][name]) == 2
        for rank in (0, 1):
            assert history(records)[1][f"ranks/{name}/{rank}"] == pytest.approx(row["ranks"][name][rank])
    assert min(row["ranks"]["memory_bytes"]) > 50e6
    assert min(row["ranks"]["images_per_second"]) > 0
    assert (
        2 * row["ranks"]["images_per_second"][0] >= row["images_per_second"]
    )  # which includes the exchange of figures


def test_the_run_has_its_configuration_environment_and_code_version(
    tracked: Path, records: list[dict[str, Any]]
) -> None:
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    environment = json.loads((tracked / "environment.json").read_text())
    assert (run["project"], run["run_group"], run["display_name"]) == ("vgg_ddp", "tests", "tracked")
    config = run["config"]["update"]
    assert config["environment"] == environment
    assert {key: config[key] for key in config if key not in ("_wandb", "environment")} == msgspec.to_builtins(
        load(tracked / "config.yaml")
    )
    if environment["commit"] is not None:  # None outside a checkout
        assert run["git"]["commit"] == environment["commit"].removesuffix("-changed")
    known = json.loads((tracked / "checkpoints" / latest(tracked) / "state.json").read_text())["tracker_run_ids"]
    assert known == {"wandb": run["run_id"]}


def test_summaries_are_defined_and_the_totals_are_there(tracked: Path, records: list[dict[str, Any]]) -> None:
    defined = {r["metric"]["name"]: set(r["metric"]["summary"]) for r in records if r["type"] == "metric"}
    assert defined["train/loss"] == {"min", "last"}
    assert "validation/accuracy" not in defined  # a sweep finds it under its own name
    totals = json.loads((tracked / "summary.json").read_text())
    summary = summary_of(records)
    assert {f"totals/{name}": value for name, value in totals.items()}.items() <= summary.items()


def test_the_evaluation_is_there_as_figures_tables_and_pictures(tracked: Path, final: dict[str, Any]) -> None:
    evaluation = json.loads((tracked / "evaluation/summary.json").read_text())
    for name in ("accuracy", "top5_accuracy", "loss"):
        assert final[f"test/{name}"] == pytest.approx(evaluation[name])
    files = wandb_segments(tracked)[0] / "files"
    table = json.loads((files / final["test/per_class.path"]).read_text())
    assert table["data"] == [[row[column] for column in table["columns"]] for row in evaluation["per_class"]]
    confusion = json.loads((files / final["test/confusion_matrix_table.path"]).read_text())
    classes = evaluation["classes"]
    assert {(actual, predicted): count for actual, predicted, count in confusion["data"]} == {
        (classes[i], classes[j]): evaluation["confusion"][i][j] for i in range(10) for j in range(10)
    }
    bins = json.loads((files / final["test/reliability.path"]).read_text())
    assert sum(row[2] for row in bins["data"]) == evaluation["images"]
    for name in ("test/confusion_picture", "test/reliability_diagram"):
        with Image.open(files / final[f"{name}.path"]) as picture:
            assert min(picture.size) >= 500
    report = (files / final["test/report.path"]).read_text()
    assert report == (tracked / "report/index.html").read_text()


def test_a_table_shows_images_with_their_answers(
    tracked: Path, few_digits: Path, records: list[dict[str, Any]]
) -> None:
    """In W&B a table with pictures is an artifact."""
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in records if r["type"] == "artifact"}
    (found,) = [artifact for name, artifact in artifacts.items() if "testpredictions" in name]
    files = {entry["path"]: Path(entry["local_path"]) for entry in found["manifest"]["contents"]}
    table = json.loads(files["test/predictions.table.json"].read_text())
    assert table["columns"] == list(PREDICTIONS)
    with np.load(tracked / "evaluation/predictions.npz") as arrays:
        label, prediction, probabilities = arrays["label"], arrays["prediction"], arrays["probabilities"]
    dataset = Dataset(few_digits)
    assert [row[1] for row in table["data"]] == list(range(len(label)))  # all 40, of at most 200
    for image, index, *said in table["data"]:
        with Image.open(files[image["path"]]) as picture:
            assert np.array_equal(np.asarray(picture), dataset.split("test").decode(index))
        right = bool(label[index] == prediction[index])
        sure = pytest.approx(probabilities[index].max())
        assert said == [dataset.classes[label[index]], dataset.classes[prediction[index]], sure, right]


def test_the_log_and_the_code_are_there(tracked: Path, records: list[dict[str, Any]]) -> None:
    log = (wandb_segments(tracked)[0] / "files/output.log").read_text()
    for row in read_metrics(tracked / "metrics.jsonl"):
        assert f"step {row['step']}, epoch {row['epoch']:.2f}: " in log
    assert f"validation/accuracy {row['accuracy']:.4g}" in log  # the last row's
    (code,) = [r["artifact"] for r in records if r["type"] == "artifact" and r["artifact"].get("type") == "code"]
    assert "train.py" in {entry["path"] for entry in code["manifest"]["contents"]}


def test_a_training_that_diverges_sends_an_alert(launch: Any, runs: Path) -> None:
    ranks = launch("diverging", *WORDS, "min_steps=16", "optimizer.learning_rate=1e30")
    assert ranks.wait() == [EXIT_USER_ERROR]
    (segment,) = wandb_segments(runs / "diverging")
    found = wandb_records(segment)
    (alert,) = [record["alert"] for record in found if record["type"] == "alert"]
    assert alert["title"] == "Diverged: diverging"
    assert alert["text"].startswith("It diverged: the loss is no number after step ")
    (end,) = [record["exit"] for record in found if record["type"] == "exit"]
    assert end["exit_code"] == 1
    logged = history(found)  # logged for a single rank too, so that no panel is empty
    assert logged[1]["ranks/images_per_second/0"] == logged[1]["throughput/images_per_second"]
    shutil.rmtree(runs / "diverging")


def test_a_training_that_goes_astray_sends_an_alert_and_goes_on(launch: Any, runs: Path) -> None:
    """Only once, however many losses are far above that of guessing."""
    words = ("min_steps=16", "model.batch_norm=true", "optimizer.learning_rate=2", "log.every_steps=1")
    ranks = launch("astray", *WORDS, *words)
    assert ranks.wait() == [0]
    (segment,) = wandb_segments(runs / "astray")
    found = wandb_records(segment)
    (alert,) = [record["alert"] for record in found if record["type"] == "alert"]
    assert (alert["title"], alert["level"]) == ("Went astray: astray", "WARN")
    assert "loss rose to" in alert["text"]
    shutil.rmtree(runs / "astray")


def test_the_gallery_shows_the_most_confident_mistakes(tracked: Path, few_digits: Path, final: dict[str, Any]) -> None:
    with np.load(tracked / "evaluation/predictions.npz") as arrays:
        label, prediction, probabilities = arrays["label"], arrays["prediction"], arrays["probabilities"]
    wrong = sorted(np.flatnonzero(label != prediction), key=lambda i: -probabilities[i].max())[:5]
    files = wandb_segments(tracked)[0] / "files"
    classes = Dataset(few_digits).classes
    assert len(wrong) == 5 == final["test/mistakes.count"]
    for sample, name, caption in zip(wrong, final["test/mistakes.filenames"], final["test/mistakes.captions"]):
        with Image.open(files / name) as picture:
            assert np.array_equal(np.asarray(picture), Dataset(few_digits).split("test").decode(int(sample)))
        assert caption.startswith(f"{classes[label[sample]]} taken for {classes[prediction[sample]]}, ")


def test_checkpoints_are_artifacts_made_from_the_data(
    tracked: Path, few_digits: Path, records: list[dict[str, Any]]
) -> None:
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in records if r["type"] == "artifact"}
    sha256 = Dataset(few_digits).sha256
    (data,) = [artifact for artifact in artifacts.values() if artifact.get("type") == "dataset"]
    assert json.loads(data["metadata"]) == {"sha256": sha256}
    logged = [r["artifact"] for r in records if r["type"] == "artifact" and r["artifact"].get("type") == "model"]
    (model,) = [
        artifact for artifact in logged if latest(tracked) in artifact["aliases"]
    ]  # the best may be another one
    assert {"latest", latest(tracked)} <= set(model["aliases"])
    assert json.loads(model["metadata"])["dataset_sha256"] == sha256
    uploaded = {entry["path"] for entry in model["manifest"]["contents"]}
    assert uploaded == {path.name for path in (tracked / "checkpoints" / latest(tracked)).iterdir()}


def test_the_dashboard_names_what_training_logs(records: list[dict[str, Any]], final: dict[str, Any]) -> None:
    logged = {re.sub(r"\._?[a-z]+$", "", key) for item in history(records).values() for key in item}
    summary = set(summary_of(records))
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    for section in dashboard.definition().sections:
        for panel in section.panels:
            match panel:
                case dashboard.LinesMatching(pattern=pattern):
                    assert any(re.fullmatch(pattern, name) for name in logged), pattern
                case dashboard.Scatter(config=key, summary=name):
                    group, _, key = key.partition(".")
                    assert key in run["config"]["update"][group] and name in summary
                case dashboard.Bar(metrics=metrics):
                    assert set(metrics) <= summary | logged
                case dashboard.Table(metric=metric):
                    assert metric in logged
                case _:
                    assert set(panel.metrics) <= logged, panel


def test_a_stopped_training_goes_on_in_the_same_run(launch: Any, runs: Path) -> None:
    run = runs / "stopped"
    stop(launch("stopped", *WORDS, *TWO_EPOCHS, pause=step(9)))
    assert launch("stopped", *WORDS, *TWO_EPOCHS, "resume=auto").wait() == [0]
    first, second = (wandb_records(segment) for segment in wandb_segments(run))
    ids = {record["run"]["run_id"] for part in (first, second) for record in part if record["type"] == "run"}
    assert len(ids) == 1
    assert any(record["type"] == "preempting" for record in first)
    logged = [*history(first), *history(second)]
    assert logged == sorted(set(logged)) == list(range(1, 17))
    shutil.rmtree(run)


def test_a_killed_training_goes_on_in_the_same_run(launch: Any, runs: Path) -> None:
    """It repeats the steps after its last checkpoint; they are not logged twice."""
    run = runs / "killed"
    words = (*WORDS, *TWO_EPOCHS, "checkpoint.every_steps=3")
    ranks = launch("killed", *words, pause=step(8))
    wait_until(ranks.paused, ranks)
    ranks.send(9)
    assert ranks.wait() == [-9]
    wait_until_gone(run)
    assert launch("killed", *words, "resume=auto").wait() == [0]
    first, second = (wandb_records(segment) for segment in wandb_segments(run))
    ids = {record["run"]["run_id"] for part in (first, second) for record in part if record["type"] == "run"}
    assert len(ids) == 1
    (end,) = [record["exit"] for record in first if record["type"] == "exit"]
    assert end["exit_code"] == 1
    logged = [*history(first), *history(second)]
    assert logged == sorted(set(logged)) == list(range(1, 17))
    shutil.rmtree(run)


def test_an_evaluation_goes_to_the_run_of_its_training(tracked: Path, start_with: Start) -> None:
    (before,) = wandb_segments(tracked)
    ranks = start_with("vgg_ddp.evaluate", {}, [str(tracked), "evaluate.checkpoint=best"])
    assert ranks.wait() == [0], ranks.stderr
    after = wandb_records(next(segment for segment in wandb_segments(tracked) if segment != before))
    (run,) = [record["run"] for record in after if record["type"] == "run"]
    assert run["run_id"] == before.name.rsplit("-", 1)[1]
    (item,) = history(after).values()
    assert item["test/accuracy"] == json.loads((tracked / "evaluation/summary.json").read_text())["accuracy"]


def test_a_run_that_nothing_followed_is_sent_whole_by_its_evaluation(train: Train, start_with: Start) -> None:
    """Named by W&B's variables; a configuration key takes precedence over its variable."""
    run = train("unfollowed", "min_steps=2")
    assert not (run / "tracking").exists()
    said = {"PROJECT": "mine", "NAME": "by variable", "ENTITY": "team", "TAGS": "one,two", "RUN_GROUP": "not this"}
    variables = {f"WANDB_{name}": value for name, value in said.items()}
    ranks = start_with("vgg_ddp.evaluate", variables, [str(run), "tracking.wandb=offline", "tracking.group=this"])
    assert ranks.wait() == [0], ranks.stderr
    (segment,) = wandb_segments(run)
    found = wandb_records(segment)
    (sent,) = [record["run"] for record in found if record["type"] == "run"]
    assert [sent[key] for key in ("project", "display_name", "entity", "run_group")] == [
        "mine",
        "by variable",
        "team",
        "this",
    ]
    assert sent["tags"] == ["one", "two"]
    logged = history(found)
    assert sorted(logged) == [1, 2]
    assert "train/loss" in logged[1] and "test/accuracy" in logged[2]
    shutil.rmtree(run)


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            merged |= record["summary"].get("update", {})
    return merged
