"""prepare and ensure: a source's files are kept to the byte; an error is one line and leaves nothing behind."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits

from tests.support.cifar_archives import binary_files100
from tests.support.pictures import encode, jpegs, noise, oriented, png16, smooth, write_folder, write_tar
from tests.support.ports import refusing_port
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data import download
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.decoding import decode_image
from vgg_ddp.data.download import ARCHIVES
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import EncodedSplit, RawSplit
from vgg_ddp.errors import UserError

pytestmark = pytest.mark.usefixtures("small_heap")

ROOT = Path(__file__).parents[2]
GREY = encode(noise(32, 32, 0)[..., 0], "PNG")
COUNTS = {"train/cat": 5, "train/dog": 4, "train/eel": 2, "test/cat": 2, "test/dog": 3}
LABELS = {"cat": 0, "dog": 1, "eel": 2}


def silent(line: str) -> None:
    pass


def made(source: Path | str, target: Path, report: Callable[[str], None] = silent) -> Dataset:
    return prepare(str(source), target, report, downloads=target.parent / "downloads")


def encoded(dataset: Dataset, split: str) -> EncodedSplit:
    opened = dataset.split(split)
    assert isinstance(opened, EncodedSplit)
    return opened


def contents(dataset: Dataset) -> dict[str, tuple[int, bytes]]:
    """Label and bytes of each image, by its path in the source."""
    splits = [encoded(dataset, name) for name in ("train", "test")]
    return {s.key(i): (int(s.labels[i]), s.encoded(i).tobytes()) for s in splits for i in range(len(s))}


def refused(source: Path | str, tmp_path: Path, name: str = "dataset") -> str:
    """The one-line error with which the source is refused; no file is left behind or open."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as raised:
        made(source, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    message = str(raised.value)
    assert "\n" not in message
    assert " at 0x" not in message
    del raised
    gc.collect()  # a file left open warns here, and warnings are errors
    return message


# What is in the source is in the dataset


@pytest.fixture(params=["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar with ./"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same image files as a folder and as shuffled tars."""
    files = jpegs(COUNTS)
    if request.param == "folder":
        return write_folder(tmp_path / "source", files)
    names = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    prefix = "./" if request.param == "tar with ./" else ""
    compression = request.param.split(" ")[0].partition(".")[2]
    shuffled = {prefix + name: files[name] for name in names}
    return write_tar(tmp_path / f"source.{request.param.split(' ')[0]}", shuffled, compression)


def test_a_folder_and_a_tar_of_it_give_the_same_samples_and_bytes(source: Path, tmp_path: Path) -> None:
    dataset = made(source, tmp_path / "dataset")
    files = jpegs(COUNTS)
    assert contents(dataset) == {key: (LABELS[key.split("/")[1]], data) for key, data in files.items()}
    assert dataset.classes == ["cat", "dog", "eel"]
    assert dataset.name == "source"
    for name in ("train", "test"):
        split = encoded(dataset, name)
        keys = [split.key(i) for i in range(len(split))]
        assert keys == sorted(key for key in files if key.startswith(name))  # ordered by key, not as in the source
        for i, key in enumerate(keys):
            assert_array_equal(split.decode(i), np.asarray(Image.open(io.BytesIO(files[key])).convert("RGB")))
            assert split.shapes(np.array([i])).tolist() == [[32, 32]]


def test_the_record_says_what_is_there(source: Path, tmp_path: Path) -> None:
    dataset = made(source, tmp_path / "dataset")
    record = json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    assert record["splits"]["train"]["class_counts"] == [5, 4, 2]
    assert record["splits"]["test"]["class_counts"] == [2, 3, 0]
    assert [record["splits"][name]["count"] for name in ("train", "test")] == [11, 5]
    assert record["image_shape"] == [32, 32, 3]
    listed = [file for split in record["splits"].values() for file in split["files"]]
    assert {"dataset.json", *(file["name"] for file in listed)} == {p.name for p in (tmp_path / "dataset").iterdir()}
    for file in listed:
        data = (tmp_path / "dataset" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    if source.is_file():
        assert record["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert dataset.verify() == len(listed)


def test_mean_and_deviation_are_numpys_over_all_training_pixels(source: Path, tmp_path: Path) -> None:
    record = made(source, tmp_path / "dataset").record
    files = [data for key, data in jpegs(COUNTS).items() if key.startswith("train")]
    pixels = np.concatenate(
        [np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64).reshape(-1, 3) for data in files]
    )
    assert_allclose(record.mean, pixels.mean(axis=0), rtol=1e-12)
    assert_allclose(record.std, pixels.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("before", ["./", "pets/", "./pets/"])
def test_a_tar_may_hold_the_folder_itself(tmp_path: Path, before: str) -> None:
    """As `tar cf pets.tar pets` and `tar cf pets.tar ./pets` make it."""
    files = jpegs(COUNTS)
    plain = made(write_tar(tmp_path / "pets.tar", files), tmp_path / "plain")
    packed = write_tar(tmp_path / "packed.tar", {f"{before}{name}": data for name, data in files.items()})
    assert contents(made(packed, tmp_path / "dataset")) == contents(plain)


def test_an_official_archive_may_be_packed_with_a_leading_dot(tmp_path: Path) -> None:
    files = binary_files100()
    plain = made(write_tar(tmp_path / "plain.tar", files), tmp_path / "plain")
    dotted = made(
        write_tar(tmp_path / "dot.tar", {f"./{name}": data for name, data in files.items()}), tmp_path / "dot"
    )
    assert (dotted.record.name, dotted.sha256) == ("CIFAR-100", plain.sha256)


def test_the_shards_are_a_webdataset_that_any_tar_reader_reads(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "dataset")
    files, seen = jpegs(COUNTS), []
    for name in ("train", "test"):
        with tarfile.open(tmp_path / "dataset" / f"{name}-00000.tar", "r:") as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        stems = [PurePosixPath(member).stem for member in members]
        assert list(members) == [f"{stem}.{kind}" for stem in stems[::2] for kind in ("jpg", "cls")]  # in pairs
        assert len(set(stems)) == len(members) / 2
        seen += [(name, members[f"{stem}.jpg"], int(members[f"{stem}.cls"])) for stem in stems[::2]]
    assert sorted(seen) == sorted((k.split("/")[0], data, LABELS[k.split("/")[1]]) for k, data in files.items())


def test_more_than_a_shard_of_images_is_spread_over_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_ddp.data.shards.SHARD_BYTES", 10_000)
    files = jpegs({"train/a": 12, "train/b": 9, "test/a": 2})
    dataset = made(write_folder(tmp_path / "source", files), tmp_path / "dataset")
    assert len(list((tmp_path / "dataset").glob("train-*.tar"))) > 3
    assert contents(dataset) == {key: ("ab".index(key.split("/")[1]), data) for key, data in files.items()}


KINDS: dict[str, tuple[bytes, tuple[int, int]]] = {
    "rgb.png": (encode(noise(40, 48, 1), "PNG"), (40, 48)),
    "grey.jpg": (encode(noise(40, 48, 2)[..., 0]), (40, 48)),
    "grey.png": (encode(noise(40, 48, 3)[..., 0], "PNG"), (40, 48)),
    "palette.png": (encode(Image.fromarray(noise(40, 48, 4)).convert("P"), "PNG"), (40, 48)),
    "black_and_white.png": (encode(Image.fromarray(noise(40, 48, 5)).convert("1"), "PNG"), (40, 48)),
    "alpha.png": (encode(np.dstack([noise(40, 48, 6), noise(40, 48, 7)[..., :1]]), "PNG"), (40, 48)),
    "cmyk.jpeg": (encode(Image.fromarray(noise(40, 48, 8)).convert("CMYK")), (40, 48)),
    "progressive.JPG": (encode(noise(40, 48, 9), progressive=True), (40, 48)),
    "png_by_another_name.jpg": (encode(noise(40, 48, 10), "PNG"), (40, 48)),
    "odd.jpg": (encode(noise(33, 37, 11)), (33, 37)),
    "large.jpg": (encode(smooth(150, 200, 12)), (150, 200)),
    **{f"turned_{n}.jpg": (oriented(noise(40, 48, 20 + n), n), (40, 48) if n < 5 else (48, 40)) for n in range(1, 9)},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Image files of every kind in both splits."""
    folder = tmp_path_factory.mktemp("kinds")
    files = {
        f"{split}/{c}/{name}": data for name, (data, _) in KINDS.items() for split in ("train", "test") for c in "ab"
    }
    return made(write_folder(folder / "source", files), folder / "dataset")


REWRITTEN = {"palette.png", "black_and_white.png", "alpha.png", "cmyk.jpeg"}  # decoders read these differently


def test_every_plain_jpeg_and_png_is_kept_to_the_byte_at_its_own_size(kinds: Dataset) -> None:
    assert kinds.record.image_shape is None
    split = encoded(kinds, "train")
    assert len(split) == 2 * len(KINDS)
    for i in range(len(split)):
        name = split.key(i).split("/")[-1]
        data, shape = KINDS[name]
        assert (split.encoded(i).tobytes() == data) == (name not in REWRITTEN)
        assert_array_equal(split.decode(i), decode_image(data))
        assert tuple(split.shapes(np.array([i]))[0]) == shape == split.decode(i).shape[:2]


def test_a_lossless_picture_is_decoded_to_its_own_pixels(kinds: Dataset) -> None:
    split = encoded(kinds, "test")
    index = {split.key(i).split("/")[-1]: i for i in range(len(split))}
    assert_array_equal(split.decode(index["rgb.png"]), noise(40, 48, 1))
    assert_array_equal(split.decode(index["grey.png"]), np.repeat(noise(40, 48, 3)[..., :1], 3, axis=2))
    assert_array_equal(split.decode(index["alpha.png"]), noise(40, 48, 6))


TURNS: dict[int, Callable[[Any], Any]] = {  # TIFF 6.0, Orientation: where the stored row 0 and column 0 lie
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_taken_with_the_camera_turned_stands_upright(orientation: int) -> None:
    pixels = noise(20, 28, orientation)
    assert_array_equal(decode_image(oriented(pixels, orientation, "PNG")), TURNS[orientation](pixels))


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "rgb"])
def test_sixteen_bits_are_scaled_to_eight(channels: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (20, 28, *channels)).astype(np.uint16)
    expected = np.broadcast_to((values / 257).reshape(20, 28, -1), (20, 28, 3))
    assert np.abs(decode_image(png16(values)) - expected).max() <= 1


def test_files_that_are_no_images_are_left_out_and_counted(tmp_path: Path) -> None:
    extra = {"train/cat/notes.txt": b"x", "train/loose.jpg": b"x", "test/cat/.DS_Store": b"x", "LICENSE": b"x"}
    files, lines = {**jpegs(COUNTS), **extra}, list[str]()
    dataset = made(write_tar(tmp_path / "source.tar", files), tmp_path / "dataset", lines.append)
    assert set(contents(dataset)) == set(jpegs(COUNTS))
    assert any("not images in a class folder: 3" in line for line in lines)
    assert any("left out: 1, such as test/cat/.DS_Store" in line for line in lines)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
def test_an_image_that_is_a_link_in_a_tar_is_not_lost_in_silence(tmp_path: Path, kind: bytes) -> None:
    """tar stores a file's second hard link as a link; a folder with such a file has both."""
    path, lines = write_tar(tmp_path / "source.tar", jpegs(COUNTS)), list[str]()
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/100.jpg")
        link.type, link.linkname = kind, "train/cat/000.jpg" if kind == tarfile.LNKTYPE else "000.jpg"
        archive.addfile(link)
    try:
        kept = contents(made(path, tmp_path / "dataset", lines.append))
    except UserError as error:
        assert "train/cat/100.jpg" in str(error)
    else:
        assert "train/cat/100.jpg" in kept or any("left out" in line for line in lines)


def test_a_class_folder_that_is_a_link_is_not_lost_in_silence(tmp_path: Path) -> None:
    files, lines = jpegs(COUNTS), list[str]()
    source = write_folder(tmp_path / "source", files)
    (source / "train" / "eel").rename(tmp_path / "elsewhere")
    (source / "train" / "eel").symlink_to(tmp_path / "elsewhere")
    try:
        kept = contents(made(source, tmp_path / "dataset", lines.append))
    except UserError as error:
        assert "train/eel" in str(error)
    else:
        assert set(kept) == set(files) or any("train/eel" in line for line in lines)


def test_a_link_to_nowhere_among_the_images_does_no_harm(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    (source / "train" / "cat" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    target, _ = ensure(DataConfig(source=str(source), directory=str(tmp_path / "datasets")), silent)
    assert set(contents(Dataset(target))) == set(jpegs(COUNTS))


def test_names_outside_of_ascii_are_kept(tmp_path: Path) -> None:
    files = {key.replace("cat", "кот").replace("00", "é"): data for key, data in jpegs(COUNTS).items()}
    dataset = made(write_folder(tmp_path / "source", files), tmp_path / "dataset")
    assert dataset.classes == ["dog", "eel", "кот"]
    assert set(contents(dataset)) == set(files)


# The digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made("digits", tmp_path_factory.mktemp("digits") / "digits")


def test_the_digits_are_all_of_scikit_learns_each_once_and_stratified(digits: Dataset) -> None:
    train, test = digits.split("train"), digits.split("test")
    assert isinstance(train, RawSplit)
    assert isinstance(test, RawSplit)
    labels = load_digits().target
    assert len(train) + len(test) == len(labels) == 1797
    for label in range(10):
        share = (test.labels == label).sum() / (labels == label).sum()
        assert abs(share - 0.2) < 0.005
        assert (train.labels == label).sum() + (test.labels == label).sum() == (labels == label).sum()
    pictures = {image.tobytes() for split in (train, test) for image in split.images}
    assert len(pictures) == len(np.unique(load_digits().data, axis=0))
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def test_the_digits_are_the_same_pictures_enlarged(digits: Dataset) -> None:
    bunch, (train, test) = load_digits(), (digits.split(name) for name in ("train", "test"))
    assert isinstance(train, RawSplit)
    assert isinstance(test, RawSplit)
    for label in range(10):  # of each class, in the set's own order, the first are for training, the last for testing
        images = np.concatenate([train.images[train.labels == label], test.images[test.labels == label]])
        assert (images[..., :1] == images).all()  # grey
        small = images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) / 255 * 16
        difference = small - bunch.images[bunch.target == label]
        assert np.sqrt((difference**2).mean(axis=(1, 2))).max() < 2  # of 16 grey levels: what enlarging blurs


def test_raw_mean_and_deviation_are_numpys(digits: Dataset) -> None:
    train = digits.split("train")
    assert isinstance(train, RawSplit)
    pixels = np.ascontiguousarray(train.images.reshape(-1, 3).T, dtype=np.float64)
    assert_allclose(digits.record.mean, pixels.mean(axis=1), rtol=1e-12)
    assert_allclose(digits.record.std, pixels.std(axis=1), rtol=1e-12)
    assert digits.record.image_shape == [32, 32, 3]


def test_a_channel_that_never_varies_can_still_be_divided_by(tmp_path: Path) -> None:
    black = {key: encode(np.zeros((32, 32, 3), dtype=np.uint8)) for key in jpegs(COUNTS)}
    record = made(write_folder(tmp_path / "source", black), tmp_path / "dataset").record
    assert record.mean == [0.0] * 3
    assert min(record.std) > 0


# What is wrong is one line, and nothing is left behind


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    assert "missing.tar does not exist" in refused(tmp_path / "missing.tar", tmp_path)


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/outside.jpg", "train/cat/../../../outside.jpg"])
def test_a_tar_with_a_member_outside_of_its_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "source.tar", {**jpegs(COUNTS), name: encode(noise(32, 32, 0))})
    message = refused(path, tmp_path)
    assert repr(name) in message
    assert "outside of its folder" in message


FOLDERS: dict[str, tuple[dict[str, int], str]] = {
    "empty": ({}, r"no images in train/CLASS"),
    "without classes": ({"train": 3, "test": 3}, r"no images in train/CLASS"),
    "without train": ({"test/cat": 2, "test/dog": 2}, r"no images in train/CLASS"),
    "without test, and of too few to share": (
        {"train/cat": 2, "train/dog": 2},
        r"has no test images, and data.test_share=0.2",
    ),
    "of one class": ({"train/cat": 2, "test/cat": 2}, "single class, 'cat'"),
    "with a class only in test": ({**COUNTS, "test/fox": 1}, "class 'fox' is only in test"),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_a_folder_that_is_no_set_of_classes_is_refused(tmp_path: Path, kind: str, packed: bool) -> None:
    counts, expected = FOLDERS[kind]
    files, path = jpegs(counts), tmp_path / "source"
    path.mkdir()
    source = write_tar(tmp_path / "source.tar", files) if packed else write_folder(path, files)
    message = refused(source, tmp_path)
    assert expected in message
    assert str(source) in message


UNREADABLE = {
    "empty": b"",
    "text": b"<html>404</html>",
    "half": encode(noise(64, 64, 0))[:2000],
    "half a gif": encode(noise(32, 32, 0), "GIF")[:600],
    "a png without its end": encode(noise(32, 32, 0), "PNG")[:-12],
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, kind: str, split: str) -> None:
    files = {**jpegs(COUNTS), f"{split}/cat/bad.jpg": UNREADABLE[kind]}
    message = refused(write_folder(tmp_path / "source", files), tmp_path)
    assert f"image {split}/cat/bad.jpg cannot be read" in message


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_tar_that_is_cut_is_refused(tmp_path: Path, compression: str, share: float) -> None:
    path = write_tar(tmp_path / "source.tar", jpegs(COUNTS), compression)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "source.tar is not a whole tar archive" in refused(path, tmp_path)


def offsets(path: Path) -> list[int]:
    """The offsets of the members' headers in a plain tar."""
    with tarfile.open(path) as archive:
        return [member.offset for member in archive]


@pytest.mark.parametrize("inside", [0, 100, 512], ids=["before", "in", "after"])
def test_a_plain_tar_that_is_cut_at_a_header_is_refused(tmp_path: Path, inside: int) -> None:
    files = dict(sorted(jpegs(COUNTS).items()))  # test first, so that what is left has all splits
    path = write_tar(tmp_path / "source.tar", files)
    path.write_bytes(path.read_bytes()[: offsets(path)[-2] + inside])
    assert "source.tar is not a whole tar archive" in refused(path, tmp_path)


def test_a_tar_with_a_damaged_header_is_refused_and_not_read_up_to_there(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "source.tar", dict(sorted(jpegs(COUNTS).items())))
    data = bytearray(path.read_bytes())
    data[offsets(path)[-3] + 10] ^= 1
    path.write_bytes(data)
    assert "source.tar is not a whole tar archive" in refused(path, tmp_path)


def test_a_compressed_tar_whose_checksum_is_wrong_is_refused(tmp_path: Path) -> None:
    """Packed without compression, so that a flipped bit changes only a picture, and only the checksum shows it."""
    data = write_tar(tmp_path / "source.tar", jpegs(COUNTS)).read_bytes()
    packed = bytearray(gzip.compress(data, compresslevel=0))
    packed[packed.index(b"\xff\xda") + 100] ^= 4  # after the marker that begins the pixels of a JPEG file
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(packed)
    path = tmp_path / "source.tar.gz"
    path.write_bytes(packed)
    assert "source.tar.gz is not a whole tar archive" in refused(path, tmp_path)


def test_a_file_name_that_is_no_text_is_kept_or_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", jpegs(COUNTS))
    (folder / "train" / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encode(noise(32, 32, 0)))
    try:
        assert len(contents(made(folder, tmp_path / "dataset"))) == sum(COUNTS.values()) + 1
    except UserError:
        assert not list(tmp_path.glob("*dataset*"))


def test_a_target_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "precious").write_text("mine")
    assert "dataset exists already" in refused(source, tmp_path)
    assert (tmp_path / "dataset" / "precious").read_text() == "mine"


def test_a_target_below_a_regular_file_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused(source, tmp_path, "file/dataset")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "encoded"])
def test_a_full_disk_is_named_and_nothing_is_left_on_it(tmp_path: Path, small_disk: Path, raw: bool) -> None:
    files = {**jpegs(COUNTS), "train/cat/large.jpg": encode(noise(500, 500, 0), quality=95)}
    source = "digits" if raw else write_folder(tmp_path / "source", files)
    message = refused(source, small_disk)
    assert "No space left on device" in message or "requested and" in message  # NumPy's wording
    assert "free space" in message
    assert str(small_disk / "dataset") in message


def test_a_prepared_dataset_is_found_on_a_disk_that_cannot_be_written(tmp_path: Path, small_disk: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    config = DataConfig(source=str(source), directory=str(small_disk))
    expected, _ = ensure(config, silent)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ensure(config, silent)[0] == expected


# A process that is killed, and several at once


def program(text: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys; from pathlib import Path; from vgg_ddp.config.data import DataConfig\n"
    head += "from vgg_ddp.data.ensure import ensure\nfrom vgg_ddp.data.prepare import prepare\n"
    command = [sys.executable, "-c", head + text, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


ENSURE = "print(ensure(DataConfig(source=sys.argv[1], directory=sys.argv[2]), lambda line: None)[0])"


# Stuck in the middle of its work: the inspection of an image never ends.
STUCK = """
import itertools, threading
import vgg_ddp.data.conversion as module

def inspect(*arguments, count=itertools.count(), real=module.inspect):
    if next(count) == 5:
        print("in the middle", flush=True)
        threading.Event().wait()
    return real(*arguments)

module.inspect = inspect
"""


def test_a_killed_prepare_leaves_nothing_that_the_next_one_trips_over(tmp_path: Path) -> None:
    source, place = write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "datasets"
    process = program(STUCK + ENSURE, source, place)
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(place.glob(".*.partial"))
    assert not list(place.glob("*/dataset.json"))
    target, _ = ensure(DataConfig(source=str(source), directory=str(place)), silent)
    assert len(contents(Dataset(target))) == sum(COUNTS.values())
    assert [path for path in place.iterdir() if path.suffix != ".lock"] == [target]


def test_processes_that_ask_at_once_get_the_same_dataset(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    processes = [program(ENSURE, source, tmp_path / "datasets") for _ in range(2)]
    answers = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    dataset = Dataset(answers[0][0].strip())
    assert dataset.verify() == 6
    assert [p for p in (tmp_path / "datasets").iterdir() if p.suffix != ".lock"] == [dataset.directory]


# ensure


def test_a_dataset_is_prepared_once_and_again_when_the_source_has_changed(tmp_path: Path) -> None:
    source, lines = write_folder(tmp_path / "source", jpegs(COUNTS)), list[str]()
    config = DataConfig(source=str(source), directory=str(tmp_path / "datasets"))
    first, fallbacks = ensure(config, lines.append)
    assert fallbacks == []
    assert ensure(config, lines.append)[0] == first
    assert sum("prepared source" in line for line in lines) == 1
    write_folder(source, {"train/cat/new.jpg": encode(noise(32, 32, 99))})
    second, _ = ensure(config, lines.append)
    assert second != first
    assert len(contents(Dataset(second))) == sum(COUNTS.values()) + 1


def test_an_image_that_was_replaced_in_place_is_not_served_from_the_old_dataset(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    config = DataConfig(source=str(source), directory=str(tmp_path / "datasets"))
    ensure(config, silent)
    replaced = encode(noise(32, 32, 99))
    (source / "train/cat/000.jpg").write_bytes(replaced)
    assert contents(Dataset(ensure(config, silent)[0]))["train/cat/000.jpg"] == (0, replaced)


def test_an_image_that_was_added_deeper_in_a_class_is_in_the_dataset(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**jpegs(COUNTS), "train/cat/day 1/0.jpg": encode(noise(32, 32, 98))})
    config = DataConfig(source=str(source), directory=str(tmp_path / "datasets"))
    assert "train/cat/day 1/0.jpg" in contents(Dataset(ensure(config, silent)[0]))
    write_folder(source, {"train/cat/day 1/1.jpg": encode(noise(32, 32, 99))})
    assert "train/cat/day 1/1.jpg" in contents(Dataset(ensure(config, silent)[0]))


def test_a_training_says_what_to_do_with_images_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**jpegs(COUNTS), "train/cat/bad.jpg": b"", "train/cat/grey.png": GREY})
    config = DataConfig(source=str(source), directory=str(tmp_path / "datasets"))
    with pytest.raises(UserError, match=r"train/cat/bad\.jpg cannot be read"):
        ensure(config, silent)
    with pytest.raises(UserError, match=r"see data\.unreadable and data\.unusual"):
        ensure(msgspec.structs.replace(config, unusual="refuse"), silent)
    dropping = msgspec.structs.replace(config, unreadable="drop")
    first = ensure(dropping, silent)[0]
    assert len(contents(Dataset(first))) == sum(COUNTS.values()) + 1
    with pytest.raises(UserError, match="is greyscale"):  # the set prepared under other rules is not reused
        ensure(msgspec.structs.replace(dropping, unusual="refuse"), silent)


def test_a_test_split_is_drawn_by_its_own_seed_and_share(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs({"cat": 20, "dog": 10}))
    drawn = {}
    for share, seed in ((0.2, 0), (0.2, 1), (0.5, 0)):
        config = DataConfig(source=str(source), directory=str(tmp_path / "datasets"), test_share=share, split_seed=seed)
        dataset = Dataset(ensure(config, silent)[0])
        assert dataset.record.splits["test"].class_counts == [20 * share, 10 * share]
        keys = {name: {s.key(i) for i in range(len(s))} for name in ("train", "test") for s in [encoded(dataset, name)]}
        assert not keys["train"] & keys["test"] and len(keys["train"] | keys["test"]) == 30
        drawn[share, seed] = keys["test"]
    assert drawn[0.2, 0] != drawn[0.2, 1]


def test_a_prepared_dataset_is_a_source_as_it_is(tmp_path: Path) -> None:
    dataset = made(write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "dataset")
    config = DataConfig(source=str(dataset.directory), directory=str(tmp_path / "datasets"))
    assert ensure(config, silent) == (dataset.directory, [])
    assert not (tmp_path / "datasets").exists()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every mirror of every archive is a local port that refuses connections, and no archive has been downloaded."""
    with refusing_port() as port:
        for name, archive in list(ARCHIVES.items()):
            monkeypatch.setitem(ARCHIVES, name, replace(archive, urls=(f"http://127.0.0.1:{port}/{name}",)))
        monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
        monkeypatch.chdir(tmp_path)
        yield


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_named_source_that_cannot_be_had_is_an_error_unless_a_fallback_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    config = DataConfig(source=name, directory=str(tmp_path / "datasets"))
    with pytest.raises(UserError, match=r"cannot download cifar-100?-python\.tar\.gz: .*Connection refused"):
        ensure(config, silent)
    assert [path.name for path in (tmp_path / "datasets").iterdir() if path.name[0] != "."] == ["downloads"]
    path, fallbacks = ensure(replace_fallback(config), silent)
    dataset = Dataset(path)
    assert dataset.name == "digits"
    assert path == tmp_path / "datasets" / "digits"
    assert len(fallbacks) == 1
    assert fallbacks[0].startswith(f"{name} could not be had, so digits took its place (cannot download")


def replace_fallback(config: DataConfig) -> DataConfig:
    return DataConfig(source=config.source, directory=config.directory, fallback="digits")


@pytest.mark.usefixtures("offline")
def test_a_fallback_is_for_what_cannot_be_had_and_never_for_what_is_wrong(tmp_path: Path) -> None:
    config = DataConfig(source="missing.tar", directory=str(tmp_path / "datasets"), fallback="digits")
    with pytest.raises(UserError, match=r"missing\.tar does not exist"):
        ensure(config, silent)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("where", [".", "data", "datasets", "datasets/downloads"])
def test_an_archive_that_lies_here_is_taken_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name = "cifar-100-binary.tar.gz"
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    data = write_tar(tmp_path / where / name, binary_files100(), "gz").read_bytes()
    known = replace(ARCHIVES[name], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(ARCHIVES, name, known)
    path, fallbacks = ensure(DataConfig(source="cifar100", directory="datasets"), silent)
    assert (Dataset(path).name, fallbacks) == ("CIFAR-100", [])


# Reading what was prepared


def test_a_folder_that_is_no_dataset_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no dataset\.json; run 'vgg-ddp prepare'"):
        Dataset(tmp_path)
