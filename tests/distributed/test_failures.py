"""An error that only one rank meets is reported once, and ends all ranks."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.support.rank_processes import Ranks, start
from vgg_ddp import cli
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.record import encoded as record_bytes
from vgg_ddp.data.splits import EncodedSplit
from vgg_ddp.data.storage import Storage
from vgg_ddp.distributed.activity import Seen
from vgg_ddp.distributed.failures import Restarts
from vgg_ddp.distributed.versions import difference, encoded
from vgg_ddp.errors import EXIT_USER_ERROR
from vgg_ddp.run.files import file_sha256


@pytest.fixture(scope="module")
def damaged(disk: Path) -> Path:
    """64 JPEG files prepared as a dataset, one of which has since lost its beginning."""
    source, target = disk / "pictures", disk / "damaged"
    pixels = np.random.default_rng(0).integers(0, 256, (72, 16, 16, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        folder = source / ("train" if index < 64 else "test") / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.jpg")
    prepare(str(source), target, lambda text: None, disk / "downloads", Storage("original", 95, "4:4:4"))
    split = Dataset(target).split("train")
    assert isinstance(split, EncodedSplit)
    sample = split.encoded(40).tobytes()
    (shard,) = target.glob("train-*.tar")
    content = shard.read_bytes()
    shard.write_bytes(content.replace(sample, bytes(8) + sample[8:]))
    # As in a set too large to be hashed at the start of a training; here the shard's recorded hash is made to match.
    record = Dataset(target).record
    train = record.splits["train"]
    files = [replace(file, sha256=file_sha256(shard)) if file.name == shard.name else file for file in train.files]
    splits = {**record.splits, "train": replace(train, files=files)}
    (target / "dataset.json").write_bytes(record_bytes(replace(record, splits=splits)))
    return target


def words(damaged: Path, recipe: Path, run: Path, seed: int) -> list[str]:
    return [str(recipe), f"data.source={damaged}", f"run.dir={run}", "min_steps=4", f"seed={seed}"]


# Depending on the seed, the sample falls to one rank or the other.
@pytest.mark.parametrize(("seed", "loader"), [(0, "torch"), (1, "dali"), (2, "torch")])
def test_a_damaged_sample_is_one_line_of_all_ranks(
    seed: int, loader: str, damaged: Path, recipe: Path, runs: Path
) -> None:
    arguments = [*words(damaged, recipe, runs / str(seed), seed), f"loader={loader}"]
    ranks = start("vgg_ddp.train", arguments, 2, runs / f"{seed} output")
    assert ranks.wait() == [EXIT_USER_ERROR] * 2, ranks.stderr
    (line,) = ranks.stderr.splitlines()
    assert line.startswith("vgg-ddp: sample 40 (train/"), line


def test_and_under_the_agent(damaged: Path, recipe: Path, runs: Path) -> None:
    arguments = ["train", *words(damaged, recipe, runs / "agent", 0), "nproc=2"]
    launched = Ranks(cli.main, (arguments,), 1, runs / "agent output")
    assert launched.wait() == [EXIT_USER_ERROR], launched.stderr
    (line,) = launched.stderr.splitlines()
    assert line.startswith("vgg-ddp: sample 40 (train/"), line


def test_versions_differ_in_words() -> None:
    assert difference(encoded()) == ""
    other = encoded().replace('"torch": "', '"torch": "1.')
    assert "torch " in difference(other) and "where rank 0 has 1." in difference(other)
    assert "vgg_ddp" not in difference(other)


def test_the_one_that_failed_is_named_not_those_that_were_killed_since_they_did_not_end() -> None:
    ranks = {rank: Seen(1, "step", 0, 7, 0.0) for rank in (0, 1)}
    codes = {0: 1, 1: -signal.SIGKILL}
    assert Restarts(3).judge(codes, ranks, {}, killed=True).text.startswith("rank 0 failed with exit code 1 in step 8;")
    assert Restarts(3).judge(codes, ranks, {}).text.startswith("rank 1 was killed by SIGKILL in step 8;")
    hangs = Restarts(3).judge(codes, ranks, {1: 60.0}, killed=True)
    assert hangs.text.startswith("rank 1 gave no sign for 60 s in step 8;")


def test_ranks_that_were_killed_since_they_did_not_end_when_asked_leave_the_signal_s_code() -> None:
    ranks = {0: Seen(1, "step", 0, 7, 0.0)}
    judge = Restarts(3).judge
    assert judge({0: -signal.SIGKILL}, ranks, {}, asked=signal.SIGINT, killed=True).code == 128 + signal.SIGINT
    assert judge({0: 1}, ranks, {}, asked=signal.SIGINT, killed=True).code == 1  # a bug met while ending
