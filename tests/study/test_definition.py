"""What a study's file means: its cells, and its mistakes in one line before anything runs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec
import pytest

from tests.support.rank_processes import vgg_ddp
from tests.test_architecture import ROOT
from vgg_ddp.config import load
from vgg_ddp.errors import UserError
from vgg_ddp.study import definition as definitions
from vgg_ddp.study.definition import Cell

BASE = ROOT / "configs" / "vgg11_short.yaml"
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def cells_of(folder: Path, text: str, *words: str) -> list[Cell]:
    path = folder / "study.yaml"
    path.write_text(f"base: {BASE}\n{text}")
    definition = definitions.read(path)
    definition = msgspec.structs.replace(definition, overrides=[*definition.overrides, *words])
    return definitions.cells(definition, BASE)


def test_a_grid_has_every_combination_with_one_seed_before_the_next(tmp_path: Path) -> None:
    text = """
overrides: [seed=7, epochs=2]
grid:
  batch: [32, 64]
  schedule: [{schedule.name: step, schedule.milestones: [1, 2]}, {schedule.name: constant}]
seeds: 2
"""
    cells = cells_of(tmp_path, text, "optimizer.learning_rate=0.3")
    schedules = "name=step, milestones=[1, 2]", "name=constant"
    expected = [(seed, *rest) for seed, *rest in itertools.product((7, 8), ("32", "64"), schedules)]
    assert [(cell.seed, *cell.values.values()) for cell in cells] == expected
    assert [cell.configuration for cell in cells] == [1, 2, 3, 4] * 2
    assert len({cell.name for cell in cells}) == 8
    config = load(BASE, ["epochs=2", "optimizer.learning_rate=0.3", *cells[2].words])
    assert (config.batch, config.schedule.name, config.seed) == (64, "step", 7)
    assert config.schedule.milestones == [1.0, 2.0]


def test_random_draws_are_of_their_keys_types_and_more_begin_with_the_same(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = """
random:
  optimizer.learning_rate: {low: 1e-3, high: 1, log: True}
  batch: {low: 32, high: 256, step: 32}
  network: [vgg11, vgg13]
trials: %d
"""
    few, many = (cells_of(tmp_path, text % trials) for trials in (5, 20))
    assert few == many[:5]
    rates = [float(cell.values["optimizer.learning_rate"]) for cell in many]
    assert min(rates) >= 1e-3 and max(rates) <= 1 and sum(rate < 0.0316 for rate in rates) > 4
    assert {int(cell.values["batch"]) % 32 for cell in many} == {0}
    assert {cell.values["network"] for cell in many} == {"vgg11", "vgg13"}


def test_equal_draws_are_one_configuration(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    cells = cells_of(tmp_path, "random: {batch: [32, 64]}\ntrials: 12\nseeds: 2\n")
    assert sorted((int(cell.values["batch"]), cell.seed) for cell in cells) == [(32, 0), (32, 1), (64, 0), (64, 1)]


MISTAKES = {
    "seeds: 2": "one of grid and random",
    "grid: {batch: [32]}\ntrials: 3": "trials goes with random",
    "grid: {batch: []}": "key 'grid",
    "grid: {batch: [32]}\nseeds: many": "key 'seeds'",
    "grid: {batch: [32]}\nsamples: 3": "the keys of a study are base,",
    "grid: {batch: [32, many]}": "'batch=many': key 'batch'",
    "grid: {bach: [32]}": "unknown key 'bach'; did you mean 'batch'?",
    "grid: {optimizer: [{learning_rate: 0.1}]}": "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?",
    "grid: {seed: [1, 2]}": "seed is set by the study itself",
    "grid: {a: [{seed: 1}]}": "seed is set by the study itself",
    f"grid: {{batch: {list(range(1, 102))}}}\nseeds: 200": "these are 20,200 trainings",
    "random: {epochs: {low: 1, high: 2, log: maybe}}\ntrials: 2": "log is true or false, not 'maybe'",
    "grid: {data.validation: [0, 0.1]}": "data.validation=0 holds no images out to compare by",
    "grid: {accumulation: [1, 7]}": "does not divide into accumulation (7)",
    "random: {batch: 32}\ntrials: 2": "batch needs a list of values, or {low",
    "random: {batch: {low: 64, high: 32}}\ntrials: 2": "batch cannot be drawn",
    "random: {network: {low: vgg11, high: vgg13}}\ntrials: 2": "network cannot be drawn",
    "random: {batch: {low: few, high: 32}}\ntrials: 2": "'batch=few'",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_told_before_anything_runs(text: str, tmp_path: Path) -> None:
    if "random" in text:
        pytest.importorskip("optuna")
    with pytest.raises(UserError) as told:
        cells_of(tmp_path, text)
    assert MISTAKES[text] in str(told.value)


@pytest.mark.processes
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"base: {BASE}\ngrid: {{batch: [32, many]}}\n")
    done = vgg_ddp("study", "study.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vgg-ddp: 'batch=many': ")
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_the_base_is_found_from_here_or_beside_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "study.yaml"
    path.write_text("base: base.yaml\ngrid: {batch: [32]}\n")
    definition = definitions.read(path)
    (tmp_path / "studies" / "base.yaml").touch()
    assert definitions.found_base(definition, path) == tmp_path / "studies" / "base.yaml"
    (tmp_path / "base.yaml").touch()
    assert definitions.found_base(definition, path) == Path("base.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_homework_is_valid_and_fits_into_its_minutes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    definition = definitions.read(path)
    cells = definitions.cells(definition, definitions.found_base(definition, path))
    images = 0.0
    for cell in cells:
        config = load(BASE, [*definition.overrides, *cell.words])
        images += config.epochs * 50_000 * config.data.train_share * (1 - config.data.validation)
    assert images < 400_000 and len(cells) <= 18  # plus some seconds to start and evaluate each
    assert f"{len(cells)} trainings, {round(images, -4):,.0f} images" in path.read_text()


def test_the_page_on_homework_has_every_key_and_its_example_is_a_study(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "homework.md").read_text()
    keys = re.findall(r"^\| (`[a-z_`, ]+`) \|", text, re.MULTILINE)
    named = {name for key in keys for name in re.findall(r"[a-z_]+", key)}
    assert {field.name for field in msgspec.structs.fields(definitions.Definition)} <= named
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "study.yaml").write_text(example)
    definition = definitions.read(tmp_path / "study.yaml")
    assert len(definitions.cells(definition, BASE)) == 12
    assert [f"configs/studies/{path.name}" for path in STUDIES] == sorted(
        re.findall(r"study (configs/studies/\S+)", text)
    )
