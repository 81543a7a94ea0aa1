"""Every loader gives the pixels that Pillow and NumPy give, for the same order and the same augmentation."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from tests.cifar_archives import binary_files10, random_part
from tests.pictures import encode, jpegs, noise, oriented, png16, smooth, write_folder, write_tar
from vgg_ddp.config.schema import AugmentConfig, DataConfig
from vgg_ddp.data.dataset import Dataset, EncodedSplit, Split
from vgg_ddp.data.order import Order, Slice, evaluation_slices
from vgg_ddp.data.prepare import prepare
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch, Loader, Transform, build, choose, evaluation_transform, training_transform

CPU = torch.device("cpu")
LOADERS = {"dali": ("dali", 0), "torch": ("torch", 0), "torch with a worker": ("torch", 1)}
COUNTS = {"train/a": 14, "train/b": 13, "train/c": 12, "test/a": 4, "test/b": 4, "test/c": 5}


def make(source: Path, directory: Path) -> Dataset:
    return prepare(str(source), directory, lambda line: None, downloads=directory)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Small datasets of every storage. `smooth` is of mixed sizes and like photographs; the others are noise."""
    folder = tmp_path_factory.mktemp("datasets")
    files = {f"data_batch_{i}": random_part(i, 10, 8) for i in range(1, 6)} | {"test_batch": random_part(6, 10, 13)}
    sources = {
        "raw": write_tar(folder / "raw.tar", binary_files10(files)),
        "jpeg": write_folder(folder / "jpeg", jpegs(COUNTS)),
        "mixed": write_folder(folder / "mixed", mixed_sizes()),
        "smooth": write_folder(folder / "smooth", jpegs(COUNTS, size=None, kind=smooth)),
    }
    return {name: make(source, folder / f"{name}-dataset") for name, source in sources.items()}


def mixed_sizes() -> dict[str, bytes]:
    """JPEG and PNG, colour and grey, upright and turned, of many sizes."""
    files = jpegs(COUNTS, size=None)
    for i, key in enumerate(sorted(files)):
        if i % 4 == 1:
            files[key] = encode(noise(41 + i, 50, i), "PNG")
        elif i % 8 == 2:
            files[key] = encode(noise(40, 45 + i, i)[..., 0])
        elif i % 8 == 3:
            files[key] = oriented(noise(40, 60, i), 1 + i % 8)
    return files


def transform_of(
    resize: int | None = None, padding: int = 0, flip: bool = False, rotation: float = 0.0, size: int = 32
) -> Transform:
    data = DataConfig(resize=resize, image_size=size)
    return training_transform(data, AugmentConfig(crop_padding=padding, flip=flip, rotation=rotation), seed=11)


def loader_of(name: str, split: Split, transform: Transform, batch: int = 16) -> Loader:
    kind, workers = LOADERS[name]
    return build(kind, split, transform, DataConfig(workers=workers, decode_threads=1), CPU, batch)


def training_slices(
    split: Split, epoch: int = 1, rank: int = 0, world_size: int = 1, first_step: int = 0
) -> list[Slice]:
    return list(Order(11, np.arange(len(split)), 8).slices(epoch, rank, world_size, first_step))


def reference(split: Split, transform: Transform, part: Slice) -> NDArray[np.uint8]:
    """Crops and flips by Pillow and NumPy, one image after another."""
    drawn, images = transform.draw(part), []
    for i, sample in enumerate(part.samples):
        image = Image.fromarray(split.decode(int(sample)))
        if transform.resize is not None:
            shorter = min(image.size)
            image = image.resize(
                tuple(side * transform.resize // shorter for side in image.size), Image.Resampling.BILINEAR
            )
        pad = transform.padding
        padded = np.pad(np.asarray(image), [(pad, pad), (pad, pad), (0, 0)], mode="reflect")
        room_y, room_x = (side - transform.size for side in padded.shape[:2])
        y, x = int(drawn.crop_y[i] * (room_y + 1)), int(drawn.crop_x[i] * (room_x + 1))
        window = padded[y : y + transform.size, x : x + transform.size]
        window = window[:, ::-1] if drawn.flip[i] else window
        if transform.rotates:
            turned = Image.fromarray(np.ascontiguousarray(window))
            window = np.asarray(turned.rotate(float(drawn.angle[i]), Image.Resampling.BILINEAR))
        images.append(window)
    return np.stack(images)


def check(batches: Iterable[Batch], split: Split, transform: Transform, parts: list[Slice]) -> None:
    """The batches hold the samples of the slices, their labels, and the reference's pixels to the last bit."""
    got = list(batches)
    assert len(got) == len(parts)
    for batch, part in zip(got, parts, strict=True):
        assert_array_equal(batch.samples, part.samples)
        assert_array_equal(batch.labels.numpy(), split.labels[part.samples])
        assert_array_equal(batch.images.numpy(), reference(split, transform, part))
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        assert len(batch) == len(part.samples)


@pytest.fixture(params=LOADERS)
def loader_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Pixels


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed"])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (4, False), (4, True)])
def test_training_pixels_are_exact_without_interpolation(
    datasets: dict[str, Dataset], loader_name: str, storage: str, padding: int, flip: bool
) -> None:
    split, transform = datasets[storage].split("train"), transform_of(padding=padding, flip=flip)
    parts = training_slices(split)
    assert len(parts) > 3
    check(loader_of(loader_name, split, transform).stream(parts), split, transform, parts)


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed"])
@pytest.mark.parametrize("batch", [1, 4, 5, 50])
def test_evaluation_takes_every_centre_once_and_a_short_last_batch(
    datasets: dict[str, Dataset], loader_name: str, storage: str, batch: int
) -> None:
    split, transform = datasets[storage].split("test"), evaluation_transform(DataConfig(image_size=32))
    parts = list(evaluation_slices(np.arange(len(split)), batch))
    loader = loader_of(loader_name, split, transform, batch)
    check(loader.stream(parts), split, transform, parts)
    seen = np.concatenate([b.samples for b in loader.stream(parts)])
    assert_array_equal(seen, np.arange(13))


def pixels(loader: Loader, parts: list[Slice]) -> NDArray[np.int64]:
    return np.concatenate([batch.images.numpy() for batch in loader.stream(parts)]).astype(np.int64)


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed", "smooth"])
@pytest.mark.parametrize(("resize", "padding"), [(32, 0), (36, 4), (64, 0)])
def test_resized_pixels_are_pillows_within_rounding(
    datasets: dict[str, Dataset], storage: str, resize: int, padding: int
) -> None:
    """Measured, in levels of 255, over these twelve cases (largest and mean difference):

    torch against Pillow: 2, and 0.044. DALI against either: 1, and 0.27; at the border of an image of noise that shrinks,
    where DALI repeats the edge and Pillow weighs what there is, 11.
    """
    split, transform = datasets[storage].split("train"), transform_of(resize=resize, padding=padding, flip=True)
    parts = training_slices(split)
    expected = np.concatenate([reference(split, transform, part) for part in parts]).astype(np.int64)
    by_torch, by_dali = (pixels(loader_of(name, split, transform), parts) for name in ("torch", "dali"))
    assert np.abs(by_torch - expected).max() <= 2
    assert np.abs(by_torch - expected).mean() < 0.06
    for other in (by_torch, expected):
        difference = np.abs(by_dali - other)
        assert difference[:, 10:-10, 10:-10].max() <= 1
        assert difference.max() <= (12 if storage == "mixed" else 2)
        assert difference.mean() < 0.3


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed", "smooth"])
@pytest.mark.parametrize("rotation", [15.0, 180.0])
def test_rotated_pixels_are_the_same_within_rounding(
    datasets: dict[str, Dataset], storage: str, rotation: float
) -> None:
    """Measured: DALI against torch 1 level of 255 at most, 0.0005 in the mean; Pillow treats only the edge otherwise."""
    split = datasets[storage].split("train")
    transform = transform_of(padding=4, flip=True, rotation=rotation)
    parts = training_slices(split)
    expected = np.concatenate([reference(split, transform, part) for part in parts])
    by_torch, by_dali = (pixels(loader_of(name, split, transform), parts) for name in ("torch", "dali"))
    assert np.abs(by_dali - by_torch).max() <= 1
    assert np.abs(by_dali - by_torch).mean() < 0.001
    inner = slice(10, -10)  # within the image at any angle
    assert np.abs(by_torch - expected)[:, inner, inner].max() <= 1
    assert (by_torch[:, 0, 0] == 0).any()  # corners do turn black


def test_all_augmentations_together_are_the_same_within_rounding(datasets: dict[str, Dataset]) -> None:
    """Measured: 1 level of 255 at most, 0.16 in the mean."""
    split = datasets["smooth"].split("train")
    transform, parts = transform_of(resize=36, padding=4, flip=True, rotation=15.0), training_slices(split)
    by_torch, by_dali = (pixels(loader_of(name, split, transform), parts) for name in ("torch", "dali"))
    assert np.abs(by_dali - by_torch).max() <= 1
    assert np.abs(by_dali - by_torch).mean() < 0.2


def test_a_worker_process_changes_nothing(datasets: dict[str, Dataset]) -> None:
    split = datasets["mixed"].split("train")
    transform, parts = transform_of(resize=36, padding=4, flip=True, rotation=15.0), training_slices(split)
    alone, worker = (pixels(loader_of(name, split, transform), parts) for name in ("torch", "torch with a worker"))
    assert_array_equal(alone, worker)


BOTH_LOADERS = """
import gc, sys
from dataclasses import replace
from tests.loaders.test_loaders import Dataset, loader_of, training_slices, transform_of

def collecting_draw(part):
    gc.collect()
    return transform.draw(part)

gc.disable()
split, transform = Dataset(sys.argv[1]).split("train"), transform_of()
dali = loader_of("dali", split, transform)
batches = list(dali.stream(training_slices(split)))
del dali, batches  # its pipeline is garbage now, in a cycle, with threads that no fork copies
worker = loader_of("torch with a worker", split, replace(transform, draw=collecting_draw))
print(sum(len(batch) for batch in worker.stream(training_slices(split))))
"""


def test_a_worker_is_not_held_up_by_a_dali_loader_that_was_let_go_of(datasets: dict[str, Dataset]) -> None:
    """A forked worker that collected its parent's pipeline would wait for that one's threads for ever."""
    directory, root = datasets["jpeg"].directory, Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", BOTH_LOADERS, str(directory)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the worker too
    assert (process.returncode, output.split()) == (0, ["32"])


def test_sixteen_bit_pictures_are_the_same_to_every_loader(tmp_path: Path) -> None:
    """Grey to the last bit. Of RGB Pillow gives the upper eight bits and DALI the nearest: one level apart at most."""
    values = np.random.default_rng(0).integers(0, 2**16, (6, 32, 32, 3)).astype(np.uint16)
    folders = [f"{split}/{c}" for split in ("train", "test") for c in "ab"]
    files = {f"{folder}/{i}.png": png16(v[..., 0]) for folder in folders for i, v in enumerate(values)}
    files |= {f"{folder}/{i}_rgb.png": png16(v) for folder in folders for i, v in enumerate(values)}
    split = make(write_folder(tmp_path / "source", files), tmp_path / "dataset").split("test")
    parts = list(evaluation_slices(np.arange(len(split)), 5))
    by_torch, by_dali = (pixels(loader_of(name, split, transform_of()), parts) for name in ("torch", "dali"))
    grey = np.array(["rgb" not in split.key(i) for i in range(len(split))])
    assert grey.sum() == 12
    assert_array_equal(by_torch[grey], by_dali[grey])
    assert np.abs(by_torch - by_dali).max() <= 1


# Streams


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_batches_stay_whole_while_later_ones_are_made(
    datasets: dict[str, Dataset], loader_name: str, storage: str
) -> None:
    split, transform = datasets[storage].split("train"), transform_of(padding=4, flip=True)
    parts = [part for epoch in range(8) for part in training_slices(split, epoch)]
    held, copies = [], []
    for batch in loader_of(loader_name, split, transform).stream(parts):
        held.append(batch)
        copies.append((batch.images.clone(), batch.labels.clone(), batch.samples.copy()))
    assert len(held) == len(parts) > 30
    for batch, (images, labels, samples) in zip(held, copies, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
        assert_array_equal(batch.samples, samples)
    assert len({batch.images.data_ptr() for batch in held}) == len(held)
    check(held, split, transform, parts)


@pytest.mark.parametrize("storage", ["raw", "mixed"])
def test_a_loader_serves_one_stream_after_another(datasets: dict[str, Dataset], loader_name: str, storage: str) -> None:
    """Whole epochs, one that begins in its middle, an empty one, and batches that are smaller than the largest."""
    split, transform = datasets[storage].split("train"), transform_of(padding=4, flip=True)
    loader = loader_of(loader_name, split, transform)
    streams = [
        training_slices(split, epoch=0),
        training_slices(split, epoch=1, first_step=2),
        [],
        training_slices(split, epoch=2, rank=1, world_size=4),
        training_slices(split, epoch=3, first_step=len(split) // 8 - 1),
        training_slices(split, epoch=4),
    ]
    for parts in streams:
        check(loader.stream(iter(parts)), split, transform, parts)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_the_ranks_pixels_are_the_single_ranks(datasets: dict[str, Dataset], loader_name: str, storage: str) -> None:
    split, transform = datasets[storage].split("train"), transform_of(padding=4, flip=True, rotation=15.0)
    alone = [b.images for b in loader_of(loader_name, split, transform).stream(training_slices(split))]
    ranks = [
        [b.images for b in loader_of(loader_name, split, transform).stream(training_slices(split, 1, rank, 4))]
        for rank in range(4)
    ]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([batches[step] for batches in ranks]), whole)


# What is wrong is a line that names the sample


def damage(split: EncodedSplit, index: int, dataset: Dataset, change: Callable[[bytes], bytes]) -> None:
    """Change a stored sample in its shard, in place, to other bytes of the same number."""
    data = split.encoded(index).tobytes()
    changed = change(data)
    assert len(changed) == len(data)
    for shard in dataset.directory.glob(f"{split.name}-*.tar"):
        whole = shard.read_bytes()
        if data in whole:
            with shard.open("r+b") as file:
                file.seek(whole.index(data))
                file.write(changed)


def middle(data: bytes, value: bytes) -> bytes:
    return data[: len(data) // 2] + value + data[len(data) // 2 + len(value) :]


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "no beginning": ("JPEG", lambda data: b"\0" * 8 + data[8:]),
    "no second half": ("JPEG", lambda data: middle(data, b"\0" * (len(data) // 2))),
    "no end": ("JPEG", lambda data: data[:-40] + b"\0" * 40),
    "other pixels": ("JPEG", lambda data: middle(data, b"\x55\xaa\x55")),
    "an early end": ("JPEG", lambda data: middle(data, b"\xff\xd9")),
    "another format": ("JPEG", lambda data: (b"GIF89a" + b"\0" * len(data))[: len(data)]),
    "a wrong check sum": ("PNG", lambda data: middle(data, bytes([data[len(data) // 2] ^ 1]))),
    "no end chunk": ("PNG", lambda data: data[:-12] + b"\0" * 12),
    "nothing": ("PNG", lambda data: b"\0" * len(data)),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_sample_is_named_or_gives_the_same_pixels_with_every_loader(tmp_path: Path, kind: str) -> None:
    """Few decoders notice a changed pixel; what must not be is that the loaders differ, or fail in another way."""
    encoding, change = DAMAGES[kind]
    files = {key: encode(noise(32, 32, i), encoding) for i, key in enumerate(jpegs(COUNTS))}
    dataset = make(write_folder(tmp_path / "source", files), tmp_path / "dataset")
    split = dataset.split("train")
    assert isinstance(split, EncodedSplit)
    before, index = pixels(loader_of("torch", split, transform_of()), training_slices(split)), 20
    damage(split, index, dataset, change)
    with pytest.raises(UserError, match="is not what was prepared"):
        dataset.verify()
    parts = [part for epoch in range(2) for part in training_slices(split, epoch)]  # the sample is in one or both
    answers: list[str | bytes] = []
    for name in LOADERS:
        try:
            answers.append(pixels(loader_of(name, split, transform_of()), parts).tobytes())
        except UserError as error:
            answers.append(str(error))
    assert answers[0] == answers[1] == answers[2]
    if isinstance(answers[0], str):
        assert answers[0].startswith(f"sample {index} ({split.key(index)}) cannot be decoded")
        assert "\n" not in answers[0]
    else:
        assert answers[0] != before.tobytes()


def test_the_batches_before_a_damaged_sample_are_served(tmp_path: Path, loader_name: str) -> None:
    dataset = make(write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "dataset")
    split = dataset.split("train")
    assert isinstance(split, EncodedSplit)
    parts, transform = list(evaluation_slices(np.arange(len(split)), 4)), transform_of()
    expected = [reference(split, transform, part) for part in parts[:5]]
    damage(split, 23, dataset, DAMAGES["no beginning"][1])
    served = []
    with pytest.raises(UserError, match=r"sample 23 \(train/b/009\.jpg\) cannot be decoded"):
        for batch in loader_of(loader_name, split, transform).stream(parts):
            served.append(batch.images.numpy())
    assert len(served) <= 5
    for got, right in zip(served, expected, strict=False):
        assert_array_equal(got, right)
    if loader_name != "dali":  # which makes batches ahead, and stops at once
        assert len(served) == 5


def test_images_that_are_too_small_are_refused_before_the_first_batch(
    datasets: dict[str, Dataset], loader_name: str
) -> None:
    cases = [("raw", 33, "train/0"), ("jpeg", 33, "train/a/000.jpg"), ("mixed", 100, "train/a/000.jpg")]
    for storage, size, name in cases:
        split = datasets[storage].split("train")
        with pytest.raises(UserError, match=rf"^{name} is \d+ x \d+ pixels, smaller than data\.image_size \({size}\)"):
            loader_of(loader_name, split, transform_of(size=size))
        loader_of(loader_name, split, transform_of(size=size, resize=size))


@pytest.mark.parametrize("padding", [32, 40])
def test_a_padding_that_is_too_large_to_reflect_is_named(datasets: dict[str, Dataset], padding: int) -> None:
    split = datasets["jpeg"].split("train")
    with pytest.raises(UserError, match=r"augment\.crop_padding"):
        loader_of("torch", split, transform_of(padding=padding))


def test_the_largest_padding_that_can_be_reflected_is_exact(datasets: dict[str, Dataset], loader_name: str) -> None:
    split, transform = datasets["jpeg"].split("train"), transform_of(padding=31, flip=True)
    parts = training_slices(split)
    check(loader_of(loader_name, split, transform).stream(parts), split, transform, parts)


# Batches, and the choice of a loader


@given(st.integers(1, 8), st.integers(1, 8))
def test_micro_batches_are_the_batch_in_equal_parts(count: int, size: int) -> None:
    n = count * size
    images = torch.arange(n * 12, dtype=torch.int32).reshape(n, 2, 2, 3).to(torch.uint8)
    batch = Batch(images, torch.arange(n), np.arange(n) + 100)
    parts = list(batch.micro_batches(count))
    assert [len(part) for part in parts] == [size] * count
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert_array_equal(np.concatenate([part.samples for part in parts]), batch.samples)


def test_auto_means_dali_where_it_is_installed_and_a_name_itself() -> None:
    assert choose("auto") == ("dali", "NVIDIA DALI is installed")
    assert choose("torch") == ("torch", "asked for")
    assert choose("dali") == ("dali", "asked for")
