"""Hosts without a shared disk: each prepares its own data set, in the same place, and differing data are noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from tests.support.pictures import jpegs, write_folder
from tests.support.rank_processes import Ranks
from vgg_ddp import evaluate, preflight, train
from vgg_ddp.config import load
from vgg_ddp.data import nvidia_dali
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.prepare import prepare
from vgg_ddp.distributed.world import SharedUserError, joined
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.training.job import build_job

pytestmark = pytest.mark.processes

COUNTS = {f"{split}/{label}": count for split, count in (("train", 16), ("test", 2)) for label in "ab"}


def train_on_own_host(places: list[Path], words: list[str]) -> int:
    """A rank as torchrun starts it on several hosts: each host has one rank and its own working folder."""
    os.chdir(places[int(os.environ["RANK"])])
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return train.main(words)


def evaluate_with_own_data(run: Path, datasets: list[Path]) -> int:
    """One of several ranks, each of which finds different data."""
    resolved = preflight.check_evaluation(str(run), [])
    own = msgspec.structs.replace(resolved, dataset=str(datasets[int(os.environ["RANK"])]))
    return evaluate.main([own.argument()])


def words(recipe: Path, run: Path) -> list[str]:
    return [str(recipe), f"run.dir={run}", "data.source=images", "data.directory=datasets", "min_steps=1"]


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """The working folders of two hosts: the same pictures, with different file times."""
    found = [tmp_path / "one", tmp_path / "two"]
    for place in found:
        write_folder(place / "images", jpegs(COUNTS))
    os.utime(found[1] / "images/train", (1, 1))
    return found


@pytest.mark.seconds
def test_each_host_prepares_its_own_files_in_the_same_place(places: list[Path], recipe: Path, tmp_path: Path) -> None:
    ranks = Ranks(train_on_own_host, (places, words(recipe, Path("run"))), 2, tmp_path / "ranks")
    assert ranks.wait() == [0, 0], ranks.stderr
    assert not (places[1] / "run").exists()
    run = places[0] / "run"
    (one,), (two,) = ([path.name for path in (place / "datasets").glob("images-*")] for place in places)
    assert one == two
    assert json.loads((run / "evaluation/summary.json").read_text())["world_size"] == 2
    (places[0] / "images/test/a/000.jpg").unlink()
    other = prepare(str(places[0] / "images"), tmp_path / "other", lambda line: None, tmp_path).directory
    ranks = Ranks(evaluate_with_own_data, (run, [places[0] / "datasets" / one, other]), 2, tmp_path / "ranks")
    assert ranks.wait() == [2, 2], ranks.stderr
    assert f"{other} on " in ranks.stderr and " (rank 0): their hashes differ; copy the folder" in ranks.stderr


@pytest.mark.seconds
def test_a_host_with_other_data_is_named_before_a_step(places: list[Path], recipe: Path, tmp_path: Path) -> None:
    (places[1] / "images/train/a/000.jpg").write_bytes((places[1] / "images/train/b/000.jpg").read_bytes())
    ranks = Ranks(train_on_own_host, (places, words(recipe, tmp_path / "run")), 2, tmp_path / "ranks")
    assert ranks.wait() == [2, 2], ranks.stderr
    (line,) = ranks.stderr.splitlines()
    assert line.startswith("vgg-ddp: datasets/images-") and "(rank 1) has other data than on " in line
    assert not (tmp_path / "run").exists()


def build_without_dali(recipe: Path, run: Path) -> None:
    """A rank of two, the second of which finds no DALI on its host."""
    with joined() as world:
        config = load(recipe, ["loader=dali", f"run.dir={run}", "model.whiten=true", "batch=16", "data.image_size=32"])
        dataset = Dataset(Path(config.data.source))
        if world.rank == 1:
            nvidia_dali.problem = lambda on_gpu: "NVIDIA DALI is not installed"  # type: ignore[assignment]
        with pytest.raises(SharedUserError, match="DALI"), world.together():
            build_job(config, dataset, RunDirectory(run), world)


def test_what_one_rank_lacks_ends_all_before_they_exchange_anything(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    ranks = Ranks(build_without_dali, (recipe, tmp_path / "run"), 2, tmp_path / "ranks")
    assert ranks.wait() == [0, 0], ranks.stderr
