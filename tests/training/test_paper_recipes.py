"""The recipes of the paper's training: the commands in their headers, and shrunk steps of each on made pictures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.pictures import jpegs, smooth, write_folder
from tests.support.rank_processes import start
from tests.support.run_folders import metrics
from vgg_ddp.config import Config, load

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {"paper_imagefolder.yaml": 224, "paper_cifar10.yaml": 32}
SMALL = ["data.image_size=32", "data.workers=0", "batch=8", "epochs=1e-9", "min_steps=2", "log.every_steps=1"]
SMALL += ["device=cpu", "threads=1", "precision=fp32", "loader=torch", "data.validation=0.2", "checkpoint.keep=1"]


def header(recipe: str) -> list[list[str]]:
    lines = [line.lstrip("# ") for line in (CONFIGS / recipe).read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line) for line in lines if line.startswith("vgg-ddp train")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_command_of_the_header_is_the_paper_s_training(recipe: str) -> None:
    """Section 3.1, and the scales of section 3.1 as shares of the image's side."""
    commands, made = header(recipe), set()
    assert len(commands) == 6
    for command in commands:
        assert command[2] == f"configs/{recipe}"
        config = load(CONFIGS / recipe, command[3:])
        settings = config.optimizer
        assert (config.batch, settings.momentum, settings.weight_decay, config.model.dropout) == (256, 0.9, 5e-4, 0.5)
        assert not settings.nesterov and not config.model.batch_norm
        assert (config.schedule.name, config.schedule.gamma, config.schedule.reductions) == ("plateau", 0.1, 3)
        begun = config.model.initialize_from
        assert begun in {None, *made}
        assert settings.learning_rate == (0.001 if begun and config.model.initialize_layers == "all" else 0.01)
        scale, side = config.data.resize, config.data.image_size
        assert side == RECIPES[recipe] and isinstance(scale, int)
        larger = [(scale, 384 if begun and config.model.initialize_layers == "all" else 256)]
        larger += zip(config.augment.scale_jitter or (), (256, 512))
        assert [ours for ours, _ in larger] == [round(paper * side / 224) for _, paper in larger]
        made.add(config.run.dir)
    assert {load(CONFIGS / recipe, command[3:]).network for command in commands} == {"A", "A-LRN", "D"}


@pytest.fixture(scope="module")
def pictures(runs: Path) -> Path:
    counts = {f"{split}/{name}": count for split, count in (("train", 15), ("test", 4)) for name in ("cat", "dog")}
    return write_folder(runs / "pictures", jpegs(counts, size=(44, 40), kind=smooth))


def trained(recipe: str, pictures: Path, run: Path, *words: str) -> Config:
    words = (f"data.source={pictures}", f"data.directory={run.parent / 'datasets'}", f"run.dir={run}", *words)
    ranks = start("vgg_ddp.train", [str(CONFIGS / recipe), *SMALL, *words], 1, run.with_name(f"{run.name} output"))
    assert ranks.wait() == [0], ranks.stderr
    assert [row["step"] for row in metrics(run) if row["scope"] == "steps"] == [1, 2]
    return load(run / "config.yaml")


def test_net_a_then_a_deeper_net_begun_with_it_at_scales_that_are_drawn(pictures: Path, runs: Path) -> None:
    trained("paper_imagefolder.yaml", pictures, runs / "A", "data.resize=37")
    words = ("network=D", f"model.initialize_from={runs / 'A'}", "model.initialize_layers=paper")
    config = trained(
        "paper_imagefolder.yaml", pictures, runs / "D", *words, "augment.scale_jitter=[37, 73]", "data.resize=55"
    )
    assert config.data.normalisation == "data"
    record = json.loads((runs / "D" / "environment.json").read_text())["initial_weights"]
    layers = {int(name.split(".")[1]) for name in record["taken"] if name.startswith("features.")}
    assert layers == {0, 5, 10, 12}


def test_the_small_one_with_local_response_normalisation(pictures: Path, runs: Path) -> None:
    trained("paper_cifar10.yaml", pictures, runs / "A-LRN", "network=A-LRN")
    assert yaml.safe_load((runs / "A-LRN" / "config.yaml").read_text())["augment"]["colour_shift"] == 0.1
