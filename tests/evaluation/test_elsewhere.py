"""A run is evaluated, shown and exported from another working directory, and without the images that it was trained on."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.pictures import encode, write_folder
from tests.support.rank_processes import vgg_ddp
from vgg_ddp.config import Config, load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.distributed.world import World, device_of
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import choice
from vgg_ddp.loaders.choice import shortage_for_workers, workers_left_out
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import read_metrics

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def place(runs: Path, recipe: Path) -> Path:
    """A folder with images/ and runs/a, trained with relative paths and more prefetching than shared memory holds."""
    noise = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{k}.png": encode(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8), "PNG")
        for split, count in (("train", 16), ("test", 3))
        for name in ("cat", "dog")
        for k in range(count)
    }
    write_folder(runs / "images", files)
    words = ["data.source=images", "data.directory=datasets", "run.dir=runs/a", "min_steps=2", "nproc=1"]
    words += ["data.workers=auto", "data.prefetch=1000000000"]
    done = vgg_ddp("train", str(recipe), *words, folder=runs)
    assert done.returncode == 0, done.stderr
    (runs / "elsewhere").mkdir()
    return runs


def test_workers_without_shared_memory_to_hand_over_batches_are_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = [
        line
        for line in json.loads((place / "runs/a/environment.json").read_text())["fallbacks"]
        if line.startswith("data.workers=0")
    ]
    assert "/dev/shm has" in line and "--shm-size" in line
    world = World(0, 1, 0, 1, device_of(0))
    assert shortage_for_workers(DataConfig(), world, 1) == ""
    assert shortage_for_workers(DataConfig(workers=0, prefetch=10**9), world, 256) == ""
    with monkeypatch.context() as patch:
        patch.setattr(choice, "SHARED_MEMORY", "/nowhere")
        assert shortage_for_workers(DataConfig(workers=0), world, 256) == ""
        assert "/nowhere cannot be used" in shortage_for_workers(DataConfig(workers=2), world, 256)
    with pytest.raises(
        UserError, match=r"data\.workers=2: /dev/shm has .* use data\.workers=auto, or give .*--shm-size"
    ):
        workers_left_out(DataConfig(workers=2, prefetch=10**9), world, 256)


def test_an_evaluation_says_what_its_loader_does_in_place_of_what_was_asked_for(place: Path) -> None:
    done = vgg_ddp("evaluate", "runs/a", "data.workers=2", folder=place)
    assert done.returncode == 2 and "data.workers=2: /dev/shm has" in done.stderr
    done = vgg_ddp("evaluate", "runs/a", "data.workers=auto", folder=place)
    assert done.returncode == 0, done.stderr
    assert "data.workers=0: /dev/shm has" in done.stdout


def test_paths_in_the_record_are_absolute(place: Path) -> None:
    config = load(place / "runs/a/config.yaml")
    assert (config.data.source, config.run.dir) == (str(place / "images"), str(place / "runs/a"))
    assert Config().data.source == "cifar10"  # a name, not a path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "runs/a"], "--out runs/a holds a run or a study; choose another folder"),
        (["runs/a", "--out", "runs/a"], "--out runs/a holds a run or a study; choose another folder"),
        (["model.logit_scale=2"], "was trained with model.logit_scale=1.0; leave the override out"),
        (["data.normalisation=imagenet"], "was trained with data.normalisation=data; leave the override out"),
    ],
)
def test_what_would_spoil_a_run_s_own_evaluation_is_refused(words: list[str], said: str, place: Path) -> None:
    before = (place / "runs/a/evaluation/summary.json").read_bytes()
    done = vgg_ddp("evaluate", "runs/a", *words, folder=place)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert (place / "runs/a/evaluation/summary.json").read_bytes() == before


def test_each_set_and_each_folder_keeps_its_own_result(place: Path, few_digits: Path) -> None:
    run = place / "runs/a"
    before = (run / "evaluation/summary.json").read_bytes()
    shutil.copytree(place / "images", place / "more/images")
    other = place / "more/images"
    (other / "test/cat/0.png").write_bytes((other / "test/dog/0.png").read_bytes())
    done = vgg_ddp("evaluate", "runs/a", f"data.source={other}", folder=place)
    assert done.returncode == 0, done.stderr
    (found,) = (run / "evaluations").iterdir()
    assert found.name.startswith("images-")
    assert (found / "evaluation/summary.json").is_file() and (found / "report/index.html").is_file()
    assert (run / "evaluation/summary.json").read_bytes() == before
    (place / "images/test/notes.txt").touch()
    for folder, name in (("images/test", "test"), ("more/images/test", "test-2"), ("images/test", "test")):
        done = vgg_ddp("evaluate", "runs/a", "--images", folder, folder=place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f"runs/a/images/{name}/index.html")
    assert "left out: files that are no images: 1, such as notes.txt" in done.stdout
    one = ["evaluate", "runs/a", "--images", "images/test/cat/0.png", "--out", "answers"]
    assert vgg_ddp(*one, folder=place).returncode == 0
    (row,) = csv.DictReader((place / "answers/predictions.csv").read_text().splitlines())
    assert (row["file"], row["class"]) == ("0.png", max(("cat", "dog"), key=lambda name: float(row[name])))
    assert (place / "answers/index.html").is_file()


def test_a_run_does_not_say_where_data_are_prepared(place: Path) -> None:
    """The run may be someone else's."""
    assert load(place / "runs/a/config.yaml").data.directory == str(place / "datasets")
    shutil.copytree(place / "images", place / "copy/images")
    (place / "another").mkdir()
    before = sorted(path.name for path in (place / "datasets").iterdir())
    words = ["export", "../runs/a", "--format", "safetensors", "data.source=../copy/images"]
    done = vgg_ddp(*words, folder=place / "another")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (place / "another").iterdir()] == ["datasets"]
    assert sorted(path.name for path in (place / "datasets").iterdir()) == before
    assert RunDirectory(place / "runs/a").prepared_here().data.directory == "datasets"


def test_from_another_directory(place: Path) -> None:
    here = place / "elsewhere"
    before = json.loads((place / "runs/a/evaluation/summary.json").read_text())
    shutil.rmtree(place / "images")  # the data set prepared from them is still there
    done = vgg_ddp("evaluate", "../runs/a", folder=here)
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "runs/a/evaluation/summary.json").read_text()) == before
    done = vgg_ddp("report", "../runs/a", folder=here)
    assert (done.returncode, done.stdout) == (0, "../runs/a/report/index.html\n"), done.stderr
    assert list(here.iterdir()) == []


def test_a_checkpoint_is_evaluated_from_beside_it_and_by_a_link(place: Path) -> None:
    """With the log of its own run, not of a run in which the link lies."""
    checkpoints = place / "runs/a/checkpoints"
    name = (checkpoints / "latest").read_text()
    before = json.loads((place / "runs/a/evaluation/summary.json").read_text())
    (place / "links/here").mkdir(parents=True)
    (place / "links/here/chosen").symlink_to(checkpoints / name)
    diverged = [row | {"loss": None} for row in read_metrics(place / "runs/a/metrics.jsonl")]
    (place / "links/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in diverged))
    for target, folder in ((name, checkpoints), ("links/here/chosen", place)):
        done = vgg_ddp("evaluate", target, folder=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads((place / "runs/a/evaluation/summary.json").read_text()) == before


def test_a_picture_s_name_need_not_be_utf_8(place: Path) -> None:
    """As old archives leave it."""
    (place / "old").mkdir()
    (place / "old" / os.fsdecode(b"caf\xe9.png")).write_bytes(encode(np.zeros((16, 16, 3), np.uint8), "PNG"))
    done = vgg_ddp("evaluate", "runs/a", "--images", "old", "--out", "old answers", folder=place)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in (place / "old answers/predictions.csv").read_text()


def test_without_the_data_set(place: Path) -> None:
    here = place / "elsewhere"
    images = here / "mine"
    images.mkdir()
    (images / "1.png").write_bytes(encode(np.zeros((20, 20, 3), dtype=np.uint8), "PNG"))
    shutil.rmtree(place / "datasets")
    page = (place / "runs/a/report/index.html").read_bytes()
    told = {
        ("evaluate", "../runs/a", "--images", "mine"): "answers to 1 image:",
        (
            "export",
            "../runs/a",
            "--format",
            "safetensors",
        ): "the same predictions on 100 images of noise, since the data",
        ("report", "../runs/a"): "are gone: its pages have the pictures that it keeps of them",
    }
    for words, line in told.items():
        done = vgg_ddp(*words, folder=here)
        assert done.returncode == 0, done.stderr
        assert line in done.stdout
    assert (place / "runs/a/report/index.html").read_bytes() == page
    assert not (place / "runs/a/report/without_pictures.html").exists()
    done = vgg_ddp("evaluate", "../runs/a", folder=here)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{place / 'images'} does not exist" in line
    assert [path.name for path in here.iterdir()] == ["mine"]
