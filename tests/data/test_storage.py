"""The storage formats that prepare writes, and what it reports of unusual and broken images."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from tests.support.pictures import encode, jpegs, noise, png16, smooth, write_folder
from vgg_ddp.data.conversion import Policy
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.inspection import inspect
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.sources import digits
from vgg_ddp.data.splits import EncodedSplit, RawSplit
from vgg_ddp.data.storage import Storage
from vgg_ddp.errors import UserError

COUNTS = {"train/cat": 5, "train/dog": 4, "test/cat": 2, "test/dog": 3}


def made(
    source: Path | str,
    target: Path,
    storage: Storage = Storage(),  # noqa: B008 (frozen)
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    return prepare(str(source), target, report, target.parent / "downloads", storage, policy)


def pixels(dataset: Dataset, name: str) -> list[np.ndarray]:
    split = dataset.split(name)
    return [split.decode(i) for i in range(len(split))]


# Storages


@pytest.mark.parametrize("kind", ["raw", "jpeg2000"])
def test_a_lossless_storage_of_files_has_their_pixels_and_order(tmp_path: Path, kind: str) -> None:
    files = {**jpegs(COUNTS), "train/dog/z.png": encode(noise(32, 32, 50), "PNG")}
    source = write_folder(tmp_path / "source", files)
    original, stored = made(source, tmp_path / "original"), made(source, tmp_path / kind, Storage(kind))  # type: ignore[arg-type]
    assert stored.record.storage == ("raw" if kind == "raw" else "encoded")
    assert stored.record.mean == original.record.mean
    assert stored.record.covariance == original.record.covariance
    assert stored.record.image_shape == [32, 32, 3]
    for name in ("train", "test"):
        assert_array_equal(stored.split(name).labels, original.split(name).labels)
        for one, other in zip(pixels(stored, name), pixels(original, name), strict=True):
            assert_array_equal(one, other)
    if kind == "jpeg2000":
        assert stored.record.encoding is not None
        assert stored.record.encoding["largest_difference"] == 0
        assert stored.record.encoding["images"] == len(files)


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["jpeg", "jpeg2000"])
def test_pixels_of_an_archive_can_be_encoded_and_keep_their_order(tmp_path: Path, kind: str) -> None:
    dataset, lines = None, list[str]()
    dataset = made("digits", tmp_path / "dataset", Storage(kind, quality=80), report=lines.append)  # type: ignore[arg-type]
    source = digits().splits
    encoding = dataset.record.encoding
    assert encoding is not None
    sums, largest, count = 0, 0, 0
    for name in ("train", "test"):
        split = dataset.split(name)
        assert isinstance(split, EncodedSplit)
        assert_array_equal(split.labels, source[name].labels)
        found = np.stack(pixels(dataset, name)).astype(int)
        apart = np.abs(found - source[name].images)
        sums, largest, count = sums + apart.sum(), max(largest, apart.max()), count + apart.size
        start = split.encoded(0).tobytes()[:12]
        assert start[:2] == b"\xff\xd8" if kind == "jpeg" else b"jP" in start
    assert encoding["mean_difference"] == pytest.approx(sums / count)
    assert encoding["largest_difference"] == largest
    assert (largest == 0) == (kind == "jpeg2000")
    assert encoding["psnr"] is None or encoding["psnr"] > 20
    assert any(f"{largest} at most" in line for line in lines)


def test_jpeg_storage_keeps_jpeg_files_and_encodes_the_rest(tmp_path: Path) -> None:
    files = {**jpegs(COUNTS), "train/dog/z.png": encode(smooth(32, 32, 50), "PNG")}
    dataset = made(write_folder(tmp_path / "source", files), tmp_path / "dataset", Storage("jpeg", 70, "4:2:0"))
    split = dataset.split("train")
    assert isinstance(split, EncodedSplit)
    for i in range(len(split)):
        data = split.encoded(i).tobytes()
        assert data.startswith(b"\xff\xd8")
        if split.key(i) != "train/dog/z.png":
            assert data == files[split.key(i)]
    assert dataset.record.encoding is not None
    assert dataset.record.encoding["images"] == 1
    assert (dataset.record.encoding["quality"], dataset.record.encoding["chroma"]) == (70, "4:2:0")


def test_jpeg_storage_goes_by_what_a_file_is_not_by_its_name(tmp_path: Path) -> None:
    """ImageNet's files end in .JPEG, and some of them are PNG files."""
    files = {f"{name[:-4]}.JPEG": data for name, data in jpegs(COUNTS).items()}
    files["train/dog/z.jpg"] = encode(smooth(32, 32, 50), "PNG")
    source = write_folder(tmp_path / "source", files)
    for kind, rewritten in (("jpeg", {"train/dog/z.jpg"}), ("original", set[str]())):
        dataset = made(source, tmp_path / kind, Storage(kind))  # type: ignore[arg-type]
        split = dataset.split("train")
        assert isinstance(split, EncodedSplit)
        stored = {split.key(i): split.encoded(i).tobytes() for i in range(len(split))}
        assert {key for key, data in stored.items() if data != files[key]} == rewritten
        assert (dataset.record.encoding or {"images": 0})["images"] == len(rewritten)
        with tarfile.open(dataset.directory / "train-00000.tar") as shard:
            suffixes = [name.split(".")[-1] for name in shard.getnames() if not name.endswith(".cls")]
        assert sorted(set(suffixes)) == ["jpeg", "jpg" if rewritten else "png"]


@pytest.mark.seconds
def test_a_better_quality_is_nearer_to_the_source(tmp_path: Path) -> None:
    found = [made("digits", tmp_path / str(q), Storage("jpeg", q)).record.encoding for q in (50, 95)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0]["mean_difference"] > 2 * found[1]["mean_difference"] > 0
    assert found[0]["psnr"] < found[1]["psnr"]


def test_raw_storage_of_different_sizes_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS, size=None))
    with pytest.raises(UserError, match=r"--storage raw needs images of one size"):
        made(source, tmp_path / "dataset", Storage("raw"))
    assert not (tmp_path / "dataset").exists()


def test_raw_pixels_of_the_digits_are_the_default(tmp_path: Path) -> None:
    dataset = made("digits", tmp_path / "dataset")
    assert isinstance(dataset.split("train"), RawSplit)
    assert dataset.record.encoding is None
    assert_array_equal(np.stack(pixels(dataset, "test")), digits().splits["test"].images)


# Images that are not as they should be


def rgba() -> bytes:
    image = Image.fromarray(smooth(32, 32, 1)).convert("RGBA")
    image.putalpha(Image.fromarray(noise(32, 32, 2)[..., 0]))
    return encode(image, "PNG")


def animated() -> bytes:
    first, *rest = (Image.fromarray(smooth(32, 32, i)) for i in range(3))
    return encode(first, "PNG", save_all=True, append_images=rest)


def flipped(data: bytes, seed: int = 0) -> bytes:
    """The file with bits flipped in its middle, where a JPEG has its coefficients."""
    changed = bytearray(data)
    for place in np.random.default_rng(seed).integers(len(data) // 3, len(data) - 10, 12):
        changed[place] ^= 0x15
    return bytes(changed)


UNUSUAL = {
    "cmyk.jpg": (encode(Image.fromarray(smooth(32, 32, 3)).convert("CMYK")), "is CMYK"),
    "grey.jpg": (encode(smooth(32, 32, 4)[..., 0]), "is greyscale"),
    "alpha.png": (rgba(), "has an alpha channel"),
    "sixteen.png": (png16(np.arange(1024, dtype=np.uint16).reshape(32, 32)), "has 16 bits"),
    "sixteen of colour.png": (png16(np.arange(3072, dtype=np.uint16).reshape(32, 32, 3)), "has 16 bits"),
    "clear.png": (encode(smooth(32, 32, 6), "PNG", transparency=(1, 2, 3)), "has a transparent colour"),
    "palette.png": (encode(Image.fromarray(smooth(32, 32, 5)).quantize(16), "PNG"), "has a palette"),
    "pixel.png": (encode(noise(1, 1, 6), "PNG"), "is only 1 x 1 pixels"),
    "huge.png": (encode(np.zeros((4000, 5001, 3), dtype=np.uint8), "PNG"), "is 20 megapixels large"),
    "animated.png": (animated(), "is animated: the first of 3 frames"),
    "named.jpg": (encode(smooth(32, 32, 7), "PNG"), "is a PNG file named .jpg"),
}
BROKEN = {
    "truncated.jpg": encode(smooth(64, 64, 8))[:900],
    "flipped.jpg": flipped(encode(noise(64, 64, 9))),
    "empty.jpg": b"",
    "text.png": b"<html>",
    "flipped.png": flipped(encode(noise(64, 64, 10), "PNG")),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_said_and_its_pixels_are_there(name: str) -> None:
    data, expected = UNUSUAL[name]
    found = inspect(f"train/a/{name}", data)
    assert found.unreadable == ""
    assert [remark for remark in found.unusual if expected in remark], found.unusual
    assert found.pixels is not None
    assert found.pixels.shape[2] == 3


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_said(name: str) -> None:
    found = inspect(f"train/a/{name}", BROKEN[name])
    assert found.pixels is None
    assert found.unreadable


def test_an_ordinary_image_is_passed_without_a_word() -> None:
    for kind, name in (("JPEG", "a.jpg"), ("JPEG", "a.JPEG"), ("PNG", "a.png")):
        found = inspect(name, encode(smooth(32, 32, 0), kind))
        assert (found.unreadable, found.unusual) == ("", [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good images, all that is unusual, and all that is broken, in one class."""
    files = {**jpegs(COUNTS), **{f"train/cat/{n}": data for n, (data, _) in UNUSUAL.items()}}
    return write_folder(tmp_path / "source", {**files, **{f"train/dog/{n}": data for n, data in BROKEN.items()}})


def test_all_that_is_broken_is_named_in_one_report(folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UserError, match=rf"{len(BROKEN)} images are refused") as refused:
        made(folder, tmp_path / "dataset", report=lines.append)
    assert "\n" not in str(refused.value)
    for name in BROKEN:
        assert [line for line in lines if f"train/dog/{name} cannot be read: " in line], name
    for name, (_, remark) in UNUSUAL.items():
        assert [line for line in lines if f"train/cat/{name} " in line and remark in line], name
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.seconds
def test_the_broken_can_be_dropped_and_the_unusual_are_converted(folder: Path, tmp_path: Path) -> None:
    dataset = made(folder, tmp_path / "dataset", policy=Policy(unreadable="drop"))
    split = dataset.split("train")
    keys = {split.key(i).split("/")[-1] for i in range(len(split))}
    assert keys.isdisjoint(BROKEN)
    assert keys.issuperset(UNUSUAL)
    assert len(split) == 9 + len(UNUSUAL)
    notes = json.loads((dataset.directory / "dataset.json").read_text())["notes"]
    assert len(notes) >= len(UNUSUAL) + len(BROKEN)
    assert all(image.shape[2] == 3 for image in pixels(dataset, "train"))


def test_the_unusual_can_be_refused(tmp_path: Path) -> None:
    files = {**jpegs(COUNTS), "train/cat/grey.jpg": UNUSUAL["grey.jpg"][0]}
    source = write_folder(tmp_path / "source", files)
    with pytest.raises(UserError, match=r"image train/cat/grey\.jpg is greyscale"):
        made(source, tmp_path / "dataset", policy=Policy(unusual="refuse"))
    assert not (tmp_path / "dataset").exists()


def test_a_class_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    files = {**jpegs(COUNTS), "train/eel/0.jpg": b"", "train/eel/1.jpg": b"x"}
    source = write_folder(tmp_path / "source", files)
    for kind in ("original", "raw"):
        with pytest.raises(UserError, match=r"no image of train/eel can be read"):
            made(source, tmp_path / "dataset", Storage(kind), Policy(unreadable="drop"))  # type: ignore[arg-type]


def test_uneven_classes_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    made(write_folder(tmp_path / "a", jpegs({**COUNTS, "train/dog": 9})), tmp_path / "uneven", report=lines.append)
    assert [
        line for line in lines if "are uneven: 5 training images of cat, 9 of dog; data.balance_classes=true" in line
    ]
    lines.clear()
    made(write_folder(tmp_path / "b", jpegs(COUNTS)), tmp_path / "even", report=lines.append)
    assert not [line for line in lines if "are uneven: " in line]


# The command


def command(*words: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-m", "vgg_ddp", *map(str, words)]
    return subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_that_prepare_the_same_at_once_leave_one_whole_dataset(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs({**COUNTS, "train/cat": 400}))
    processes = [command("prepare", source, "--out", tmp_path / "dataset") for _ in range(3)]
    answers = [process.communicate(timeout=600) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2, 2], answers
    for process, (_, error) in zip(processes, answers, strict=True):
        assert process.returncode == 0 or len(error.splitlines()) == 1
    assert len(Dataset(tmp_path / "dataset").split("train")) == 404
    Dataset(tmp_path / "dataset").verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "source"]


def test_prepare_takes_a_storage_and_verify_checks_hashes_and_order(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    made_it = command("prepare", source, "--out", tmp_path / "dataset", "--storage", "raw")
    answer = made_it.communicate()
    assert made_it.returncode == 0, answer
    verified = command("verify", tmp_path / "dataset")
    output, _ = verified.communicate()
    assert verified.returncode == 0
    assert "6 files, every hash is right" in output
    wrong = command("prepare", source, "--out", tmp_path / "other", "--storage", "jpeg", "--quality", "0")
    _, error = wrong.communicate()
    assert (wrong.returncode, error.strip()) == (2, "vgg-ddp: --quality 0 is not between 1 and 100")


def test_an_image_that_a_format_has_no_room_for_is_one_line(tmp_path: Path) -> None:
    wide = np.zeros((1, 66_000, 3), dtype=np.uint8)
    source = write_folder(tmp_path / "source", jpegs(COUNTS) | {"train/cat/wide.png": encode(wide, "PNG")})
    with pytest.raises(UserError, match="an image of 66000 x 1 pixels cannot be stored by --storage jpeg"):
        made(source, tmp_path / "dataset", Storage("jpeg"))
