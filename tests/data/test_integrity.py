"""A prepared data set must stay as it was prepared: any later change is reported, and nothing changed is trained on."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.earlier_data import without_checksums
from tests.support.pictures import encode, jpegs, noise, write_folder
from vgg_ddp import preflight
from vgg_ddp.data.dataset import QUICKLY_READ, Dataset
from vgg_ddp.data.inspection import inspect
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import EncodedSplit, RawSplit, checksum, checksums
from vgg_ddp.data.storage import Storage
from vgg_ddp.errors import UserError, printable

COUNTS = {"train/cat": 5, "train/dog": 4, "train/eel": 2, "test/cat": 2, "test/dog": 3}


def made(source: Path, target: Path, storage: str = "original") -> Dataset:
    return prepare(str(source), target, lambda line: None, target.parent / "downloads", Storage(storage))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("integrity")
    source = write_folder(place / "source", jpegs(COUNTS))
    return {name: made(source, place / name, name).directory for name in ("raw", "original")}


def names(dataset: Path) -> list[str]:
    return [file.name for split in Dataset(dataset).record.splits.values() for file in split.files]


@pytest.mark.parametrize("storage", ["raw", "original"])
def test_a_truncated_or_missing_file_is_refused(storage: str, prepared: dict[str, Path]) -> None:
    dataset = prepared[storage]
    assert Dataset(dataset).verify() == len(names(dataset)) == 6
    for name in names(dataset):
        path = dataset / name
        data = path.read_bytes()
        for change in (lambda path=path, data=data: path.write_bytes(data[:-1]), path.unlink):
            change()
            with pytest.raises(UserError, match=f"{path} is missing or truncated"):
                Dataset(dataset)
        path.write_bytes(data)


@pytest.mark.parametrize("storage", ["raw", "original"])
def test_any_flipped_bit_is_found_before_training(storage: str, prepared: dict[str, Path]) -> None:
    """At the start of a training: by opening the set, and by its hashes unless it is large."""
    dataset, rng = prepared[storage], random.Random(storage)
    for name in [*names(dataset), "dataset.json"]:
        path = dataset / name
        data = path.read_bytes()
        for _ in range(60):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            if json_of(bytes(changed)) == json_of(data) != b"":  # only white space in dataset.json has changed
                continue
            with pytest.raises(UserError):
                Dataset(dataset).verify(at_most=QUICKLY_READ)
        path.write_bytes(data)
    assert Dataset(dataset).verify(at_most=QUICKLY_READ)


@pytest.mark.seconds
@pytest.mark.parametrize("storage", ["raw", "original"])
def test_a_flipped_bit_in_an_index_or_a_header_is_one_line_before_any_rank_starts(
    storage: str, prepared: dict[str, Path], tmp_path: Path
) -> None:
    """The splits are opened, to choose sizes, before hashes are compared."""
    dataset, rng = prepared[storage], random.Random(storage)
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: {dataset}, validation: 0}}")
    names = {"raw": ["images.npy", "labels.npy"], "original": ["index.npz"]}[storage]
    refused = 0
    for path in [dataset / f"{split}.{name}" for split in ("train", "test") for name in names]:
        data = path.read_bytes()
        header = len(data) if storage == "original" else 128
        for place in rng.sample(range(header), min(header, 300)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            try:
                preflight.check_training(str(tmp_path / "recipe.yaml"), [f"run.dir={tmp_path}/run"])
            except UserError as error:
                refused += 1
                assert str(error) == f"{path} is not what was prepared (sha256 differs); prepare it again"
            with pytest.raises(UserError, match="sha256 differs"):
                Dataset(dataset).verify(at_most=QUICKLY_READ)
        path.write_bytes(data)
    assert refused > 100


def json_of(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return b""


@pytest.mark.parametrize("padding", [0, 9000])
def test_of_a_large_set_each_sample_is_checked_as_it_is_read(padding: int, tmp_path: Path) -> None:
    """Small files are read in batches, large ones on their own."""
    files = {name: data + bytes(padding) for name, data in jpegs(COUNTS).items()}
    dataset = made(write_folder(tmp_path / "source", files), tmp_path / "dataset")
    shard, rng = dataset.directory / "train-00000.tar", random.Random(padding)
    data = shard.read_bytes()
    train = dataset.split("train")
    assert isinstance(train, EncodedSplit)
    everything = np.arange(len(train))
    train.encoded_batch(everything)
    for _ in range(200):
        sample = rng.randrange(len(train))
        place = data.index(train.encoded(sample).tobytes()) + rng.randrange(len(train.encoded(sample)))
        shard.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        opened = Dataset(dataset.directory)
        opened.verify(at_most=1000)  # it is larger
        split = opened.split("train")
        assert isinstance(split, EncodedSplit)
        said = rf"sample {sample} \({split.key(sample)}\) is not what was stored"
        with pytest.raises(UserError, match=said):
            split.encoded_batch(everything)
        with pytest.raises(UserError, match=said):
            split.decode(sample)
        shard.write_bytes(data)


@pytest.mark.parametrize("side", [32, 15])  # 15 x 15 pixels are not a whole number of words
def test_of_a_large_raw_set_each_sample_is_checked_as_it_is_read(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {name: encode(noise(side, side, seed)) for seed, name in enumerate(jpegs(COUNTS))}
    directory = made(write_folder(tmp_path / "source", pictures), tmp_path / "dataset", "raw").directory
    monkeypatch.setattr("vgg_ddp.data.dataset.QUICKLY_READ", 1000)
    file, rng = directory / "train.images.npy", random.Random(side)
    data = file.read_bytes()
    start, size = data.index(b"\n") + 1, 3 * side * side
    split = Dataset(directory).split("train")
    assert isinstance(split, RawSplit)
    everything = np.arange(len(split))
    split.pixels(everything)
    split.compare(everything)
    assert [checksum(image.reshape(-1)) for image in split.images] == checksums(split.images).tolist()
    for _ in range(100):
        sample = rng.randrange(len(split))
        place = start + sample * size + rng.randrange(size)
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        opened = Dataset(directory)
        opened.verify(at_most=1000)  # it is larger
        split = opened.split("train")
        assert isinstance(split, RawSplit)
        said = rf"sample {sample} \(train/{sample}\) is not what was stored"
        for read in (lambda: split.pixels(everything), lambda: split.decode(sample), lambda: split.compare(everything)):  # noqa: B023
            with pytest.raises(UserError, match=said):
                read()
        file.write_bytes(data)


def test_a_damaged_header_of_a_large_raw_set_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = made(write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "dataset", "raw").directory
    monkeypatch.setattr("vgg_ddp.data.dataset.QUICKLY_READ", 1000)
    file = directory / "train.images.npy"
    data = file.read_bytes()
    for damaged in (data.replace(b"'shape': (11,", b"'shape': (91,"), data.replace(b"NUMPY", b"NUMPX")):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train.images.npy cannot be opened \(.*; see 'vgg-ddp verify'"):
            Dataset(directory).split("train")


def test_other_data_that_is_trained_on_a_class_which_the_network_does_not_know(tmp_path: Path) -> None:
    of_two = {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1}
    trained = made(write_folder(tmp_path / "two", jpegs(of_two)), tmp_path / "a").record
    other = made(write_folder(tmp_path / "more", jpegs(of_two | {"train/eel": 1})), tmp_path / "b").directory
    with pytest.raises(UserError, match="more has training images of eel, which the network does not know"):
        Dataset(other, trained)


def test_the_identity_of_a_dataset_is_that_of_its_bytes(tmp_path: Path) -> None:
    files = jpegs(COUNTS)
    one = made(write_folder(tmp_path / "one", files), tmp_path / "a")
    same = made(write_folder(tmp_path / "two", dict(reversed(files.items()))), tmp_path / "b")
    other = made(
        write_folder(tmp_path / "three", {**files, "test/cat/000.jpg": encode(noise(32, 32, 99))}), tmp_path / "c"
    )
    assert one.sha256 == same.sha256 != other.sha256


def test_checksums_are_no_part_of_the_identity(tmp_path: Path) -> None:
    """Sets of earlier versions have none, and stay valid for the runs that were trained on them."""
    dataset = made(write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "dataset")
    earlier = without_checksums(dataset)
    assert earlier.sha256 == dataset.sha256
    assert earlier.verify() == 4
    assert earlier.split("train").decode(0).shape == (32, 32, 3)


RECORDS: dict[str, tuple[Callable[[str], str], str]] = {
    "no json": (lambda text: text[:-5], "cannot be read"),
    "an unknown key": (lambda text: text.replace('"name"', '"title"', 1), "cannot be read"),
    "a future format": (lambda text: text.replace('"format_version": 2', '"format_version": 3'), "has format 3"),
    "another type": (lambda text: text.replace('"classes": [', '"classes": [1, '), "cannot be read"),
    "another class": (lambda text: text.replace('"cat"', '"cow"'), "its own sha256 differs"),
    "one class more": (lambda text: text.replace('"classes": [', '"classes": ["ant", '), "counts of t.* 4 classes"),
    "no split to test on": (lambda text: text.replace('"test": {', '"tast": {'), "has no split 'test'"),
    "a file elsewhere": (
        lambda text: text.replace('"train.index.npz"', '"../index.npz"'),
        "names a file '../index.npz'",
    ),
    "two channels": (lambda text: text.replace('"mean": [', '"mean": [1, '), "not of three channels"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_cannot_be_understood_is_refused(kind: str, prepared: dict[str, Path], tmp_path: Path) -> None:
    change, expected = RECORDS[kind]
    (tmp_path / "dataset.json").write_text(change((prepared["original"] / "dataset.json").read_text()))
    with pytest.raises(UserError, match=expected):
        Dataset(tmp_path)


def test_a_link_in_the_way_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("all I have")
    (tmp_path / ".set.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"\.set\.partial is a link"):
        made(source, tmp_path / "set")
    assert (tmp_path / "precious" / "file").read_text() == "all I have"


@pytest.mark.parametrize("kind", ["pipe", "device", "everything", "processes"])
def test_what_has_no_end_is_no_source(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = {"pipe": tmp_path / "pipe", "device": "/dev/zero", "everything": "/", "processes": "/proc/self"}[kind]
    with pytest.raises(UserError, match="is no file or folder of images"):
        made(Path(path), tmp_path / "set")


def test_a_member_that_says_a_terabyte_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("set/train/cat/0.png")
    member.size = 2**40
    (tmp_path / "set.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UserError, match=r"set\.tar"):
        made(tmp_path / "set.tar", tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in jpegs(COUNTS).items():
            archive.writestr(name, data)
    data = (tmp_path / "set.zip").read_bytes()
    size = len(jpegs(COUNTS)["train/cat/000.jpg"]).to_bytes(4, "little")
    assert size in data
    (tmp_path / "set.zip").write_bytes(data.replace(size, b"\xff\xff\xff\xfe"))
    with pytest.raises(UserError, match=r"set\.zip"):
        made(tmp_path / "set.zip", tmp_path / "other")


def test_an_image_larger_than_any_photograph_is_not_decoded() -> None:
    """A few kilobytes that would become half a gigabyte."""
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    assert "exceeds limit of 89478485 pixels" in inspect("bomb.png", file.getvalue()).unreadable


def test_a_terminal_gets_no_control_characters_and_no_password() -> None:
    assert str(UserError("\x1b[31mred\x07 in http://me:secret@host/set.tar")) == (
        "\\x1b[31mred\\x07 in http://me:***@host/set.tar"
    )
    assert printable("one\ntwo\tthree \u200d é") == "one\ntwo\tthree \u200d é"
