"""Every loader gives the pixels that Pillow and NumPy give, for the same order and the same augmentation."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from tests.support.cifar_archives import binary_files10, random_part
from tests.support.earlier_data import without_checksums
from tests.support.pictures import encode, jpegs, noise, oriented, png16, smooth, write_folder, write_tar
from tests.support.rank_processes import apart
from vgg_ddp.augment.geometry import Geometry, evaluation_geometry, training_geometry
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data import nvidia_dali
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order, Slice, evaluation_slices
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import EncodedSplit, RawSplit, Split
from vgg_ddp.data.storage import Storage
from vgg_ddp.distributed.world import ALONE, World
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch, Loader, build, resident
from vgg_ddp.loaders.choice import choose
from vgg_ddp.loaders.resident import resident_pixels
from vgg_ddp.randomness import random_words, uniform

LOADERS = {"dali": ("dali", 0), "torch": ("torch", 0), "torch with a worker": ("torch", 1), "resident": ("resident", 0)}
STREAMING = [name for name in LOADERS if name != "resident"]
PAIRS = [(name, storage) for name in LOADERS for storage in ("raw", "jpeg", "jpeg2000")] + [
    (name, "mixed") for name in STREAMING
]
COUNTS = {"train/a": 14, "train/b": 13, "train/c": 12, "test/a": 4, "test/b": 4, "test/c": 5}


def make(source: Path, directory: Path) -> Dataset:
    return prepare(str(source), directory, lambda line: None, downloads=directory)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Small datasets in every storage. `smooth` has mixed sizes and resembles photographs; the others are noise."""
    folder = tmp_path_factory.mktemp("datasets")
    files = {f"data_batch_{i}": random_part(i, 10, 8) for i in range(1, 6)} | {"test_batch": random_part(6, 10, 13)}
    sources = {
        "raw": write_tar(folder / "raw.tar", binary_files10(files)),
        "jpeg": write_folder(folder / "jpeg", jpegs(COUNTS)),
        "mixed": write_folder(folder / "mixed", mixed_sizes()),
        "smooth": write_folder(folder / "smooth", jpegs(COUNTS, size=None, kind=smooth)),
    }
    made = {name: make(source, folder / f"{name}-dataset") for name, source in sources.items()}
    target = folder / "jpeg2000-dataset"
    made["jpeg2000"] = prepare(str(sources["raw"]), target, lambda line: None, folder, Storage("jpeg2000"))
    return made


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


def geometry_of(
    resize: int | None = None, padding: int = 0, flip: bool = False, rotation: float = 0.0, size: int = 32
) -> Geometry:
    data = DataConfig(resize=resize, image_size=size)
    return training_geometry(data, AugmentConfig(crop_padding=padding, flip=flip, rotation=rotation), seed=11)


def loader_of(name: str, split: Split, geometry: Geometry, batch: int = 16) -> Loader:
    kind, workers = LOADERS[name]
    return build(kind, split, geometry, DataConfig(workers=workers, decode_threads=1), ALONE, batch)


def loaders_of(split: Split) -> list[str]:
    """The loaders that can serve a split: resident needs images of one size."""
    return list(LOADERS) if split.uniform_shape else STREAMING


def training_slices(
    split: Split, epoch: int = 1, rank: int = 0, world_size: int = 1, first_step: int = 0
) -> list[Slice]:
    return list(Order(11, np.arange(len(split)), 8).slices(epoch, rank, world_size, first_step))


def drawn(part: Slice, purpose: str) -> NDArray[np.float64]:
    return uniform(random_words(11, part.epoch, purpose, part.start, part.stop))


def reference(split: Split, geometry: Geometry, part: Slice) -> NDArray[np.uint8]:
    """Whole images scaled, padded, cropped, flipped, turned by Pillow and NumPy, one after another."""
    training = geometry.seed is not None
    places, coins, turns = (drawn(part, purpose) for purpose in ("crop", "flip", "rotation"))
    images = []
    for i, sample in enumerate(part.samples):
        image = split.decode(int(sample))
        if geometry.resize is not None:
            image = scaled(image, geometry.resize[0])
        pad = geometry.padding
        padded = np.pad(image, [(pad, pad), (pad, pad), (0, 0)], mode="reflect")
        room_y, room_x = (side - geometry.size for side in padded.shape[:2])
        place_y, place_x = places[i, :2] if training else (0.5, 0.5)
        y, x = int(place_y * (room_y + 1)), int(place_x * (room_x + 1))
        window = padded[y : y + geometry.size, x : x + geometry.size]
        window = window[:, ::-1] if training and geometry.flip and coins[i, 0] < 0.5 else window
        if geometry.rotation:
            turned = Image.fromarray(np.ascontiguousarray(window))
            angle = float(2 * turns[i, 0] - 1) * geometry.rotation
            window = np.asarray(turned.rotate(angle, Image.Resampling.BILINEAR))
        images.append(window)
    return np.stack(images)


def scaled(image: NDArray[np.uint8], shorter: int) -> NDArray[np.uint8]:
    """The image scaled to the shorter side `shorter`, its edge repeated outside; by Pillow in floats, rounded once."""
    height, width = image.shape[:2]
    margin = 8 + max(height, width) // shorter
    size = (width * shorter // min(height, width), height * shorter // min(height, width))
    box = (margin, margin, margin + width, margin + height)
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode="edge").astype(np.float32)
    planes = (Image.fromarray(np.ascontiguousarray(padded[..., channel])) for channel in range(3))
    done = np.stack([np.asarray(p.resize(size, Image.Resampling.BILINEAR, box=box)) for p in planes], axis=2)
    return done.round().astype(np.uint8)


def check(batches: Iterable[Batch], split: Split, geometry: Geometry, parts: list[Slice]) -> None:
    """The batches hold the samples of the slices, their labels, and the reference's pixels to the last bit."""
    got = list(batches)
    assert len(got) == len(parts)
    for batch, part in zip(got, parts, strict=True):
        assert_array_equal(batch.samples, part.samples)
        assert_array_equal(batch.labels.numpy(), split.labels[part.samples])
        assert_array_equal(batch.images.numpy(), reference(split, geometry, part))
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        assert len(batch) == len(part.samples)


@pytest.fixture(params=LOADERS)
def loader_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Pixels


@pytest.mark.parametrize(("loader_name", "storage"), PAIRS)
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (4, False), (4, True)])
def test_training_pixels_are_exact_without_interpolation(
    datasets: dict[str, Dataset], loader_name: str, storage: str, padding: int, flip: bool
) -> None:
    split, geometry = datasets[storage].split("train"), geometry_of(padding=padding, flip=flip)
    parts = training_slices(split)
    assert len(parts) > 3
    check(loader_of(loader_name, split, geometry).stream(parts), split, geometry, parts)


@pytest.mark.parametrize(("loader_name", "storage"), PAIRS)
@pytest.mark.parametrize("batch", [1, 4, 5, 50])
def test_evaluation_takes_every_centre_once_and_a_short_last_batch(
    datasets: dict[str, Dataset], loader_name: str, storage: str, batch: int
) -> None:
    split, geometry = datasets[storage].split("test"), evaluation_geometry(DataConfig(image_size=32))
    parts = list(evaluation_slices(np.arange(len(split)), batch))
    loader = loader_of(loader_name, split, geometry, batch)
    check(loader.stream(parts), split, geometry, parts)
    seen = np.concatenate([b.samples for b in loader.stream(parts)])
    assert_array_equal(seen, np.arange(13))


def pixels(loader: Loader, parts: list[Slice]) -> NDArray[np.int64]:
    return np.concatenate([batch.images.numpy() for batch in loader.stream(parts)]).astype(np.int64)


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed", "smooth"])
@pytest.mark.parametrize(("resize", "padding"), [(32, 0), (36, 4), (64, 0)])
def test_resized_pixels_are_the_same_within_one_level(
    datasets: dict[str, Dataset], storage: str, resize: int, padding: int
) -> None:
    """Each loader scales the part that is cropped, the reference the whole image."""
    split, geometry = datasets[storage].split("train"), geometry_of(resize=resize, padding=padding, flip=True)
    parts = training_slices(split)
    expected = np.concatenate([reference(split, geometry, part) for part in parts]).astype(np.int64)
    by_loader = {name: pixels(loader_of(name, split, geometry), parts) for name in loaders_of(split)}
    for name, one in by_loader.items():
        assert np.abs(one - expected).max() <= 1, name
        for other in by_loader.values():
            assert np.abs(one - other).max() <= 1, name


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed", "smooth"])
@pytest.mark.parametrize("change", [{"random_resized_crop": [0.08, 1.0]}, {"scale_jitter": [32, 80]}])
def test_random_scales_are_the_same_within_one_level(
    datasets: dict[str, Dataset], storage: str, change: dict[str, list[float]]
) -> None:
    split = datasets[storage].split("train")
    config = msgspec.convert({"flip": "alternating", **change}, AugmentConfig)
    geometry, parts = training_geometry(DataConfig(), config, seed=11), training_slices(split)
    by_torch, *others = (pixels(loader_of(name, split, geometry), parts) for name in reversed(loaders_of(split)))
    for other in others:
        assert np.abs(by_torch - other).max() <= 1
    assert not np.array_equal(by_torch, pixels(loader_of("torch", split, geometry), training_slices(split, epoch=3)))


@pytest.mark.parametrize("storage", ["raw", "jpeg", "mixed", "smooth"])
@pytest.mark.parametrize("rotation", [15.0, 180.0])
def test_rotated_pixels_are_the_same_in_every_loader_and_pillows_inside(
    datasets: dict[str, Dataset], storage: str, rotation: float
) -> None:
    split = datasets[storage].split("train")
    geometry = geometry_of(padding=4, flip=True, rotation=rotation)
    parts = training_slices(split)
    expected = np.concatenate([reference(split, geometry, part) for part in parts]).astype(np.int64)
    by_torch, *others = (pixels(loader_of(name, split, geometry), parts) for name in loaders_of(split))
    for other in others:
        assert_array_equal(by_torch, other)
    inner = slice(10, -10)  # inside the image at any angle; Pillow treats the edge differently
    assert np.abs(by_torch - expected)[:, inner, inner].max() <= 1
    assert (by_torch[:, 0, 0] == 0).any()  # corners do turn black


def test_all_augmentations_together_are_the_same_within_one_level(datasets: dict[str, Dataset]) -> None:
    for storage in ("raw", "smooth"):
        split = datasets[storage].split("train")
        geometry, parts = geometry_of(resize=36, padding=4, flip=True, rotation=15.0), training_slices(split)
        by_torch, *others = (pixels(loader_of(name, split, geometry), parts) for name in loaders_of(split))
        for other in others:
            assert np.abs(other - by_torch).max() <= 1


def test_random_operations_are_pure_and_only_where_images_come_one_by_one(datasets: dict[str, Dataset]) -> None:
    split = datasets["raw"].split("train")
    geometry = training_geometry(DataConfig(), AugmentConfig(randaugment=9), seed=11)
    parts = training_slices(split)
    first, again = (pixels(loader_of("torch", split, geometry), parts) for _ in range(2))
    assert_array_equal(first, again)
    shares = [pixels(loader_of("torch", split, geometry), training_slices(split, 1, rank, 2)) for rank in range(2)]
    whole = first.reshape(len(parts), 2, 4, 32, 32, 3)
    for rank, share in enumerate(shares):
        assert_array_equal(share.reshape(len(parts), 4, 32, 32, 3), whole[:, rank])
    plain = pixels(loader_of("torch", split, geometry_of()), parts)
    changed = (first != plain).any(axis=(1, 2, 3)).mean()
    assert 0.5 < changed <= 1  # RandAugment may draw the identity
    for name in ("dali", "resident"):
        with pytest.raises(UserError, match=rf"augment\.randaugment .* loader={name} does not; set loader=torch"):
            loader_of(name, split, geometry)


def test_a_worker_process_changes_nothing(datasets: dict[str, Dataset]) -> None:
    split = datasets["mixed"].split("train")
    geometry, parts = geometry_of(resize=36, padding=4, flip=True, rotation=15.0), training_slices(split)
    alone, worker = (pixels(loader_of(name, split, geometry), parts) for name in ("torch", "torch with a worker"))
    assert_array_equal(alone, worker)


BOTH_LOADERS = """
import gc, sys
from vgg_ddp.augment.geometry import Geometry
from tests.loaders.test_loaders import Dataset, geometry_of, loader_of, training_slices

class Collecting(Geometry):
    def place(self, part, shapes):
        gc.collect()
        return super().place(part, shapes)

gc.disable()
split, geometry = Dataset(sys.argv[1]).split("train"), geometry_of()
dali = loader_of("dali", split, geometry)
batches = list(dali.stream(training_slices(split)))
del dali, batches  # its pipeline is garbage now, in a cycle, with threads that no fork copies
worker = loader_of("torch with a worker", split, Collecting(11, 32))
print(sum(len(batch) for batch in worker.stream(training_slices(split))))
"""


@pytest.mark.seconds
def test_a_worker_is_not_held_up_by_a_dali_loader_that_was_let_go_of(datasets: dict[str, Dataset]) -> None:
    """A forked worker that garbage-collected its parent's pipeline would wait forever for that pipeline's threads."""
    directory, root = datasets["jpeg"].directory, Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", BOTH_LOADERS, str(directory)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the worker too
    assert (process.returncode, output.split()) == (0, ["32"])


def test_sixteen_bit_pictures_are_the_same_to_every_loader(tmp_path: Path) -> None:
    """Grey to the last bit. For RGB, Pillow truncates to eight bits and DALI rounds: one level apart at most."""
    values = np.random.default_rng(0).integers(0, 2**16, (6, 32, 32, 3)).astype(np.uint16)
    folders = [f"{split}/{c}" for split in ("train", "test") for c in "ab"]
    files = {f"{folder}/{i}.png": png16(v[..., 0]) for folder in folders for i, v in enumerate(values)}
    files |= {f"{folder}/{i}_rgb.png": png16(v) for folder in folders for i, v in enumerate(values)}
    split = make(write_folder(tmp_path / "source", files), tmp_path / "dataset").split("test")
    parts = list(evaluation_slices(np.arange(len(split)), 5))
    by_torch, by_dali = (pixels(loader_of(name, split, geometry_of()), parts) for name in ("torch", "dali"))
    grey = np.array(["rgb" not in split.key(i) for i in range(len(split))])
    assert grey.sum() == 12
    assert_array_equal(by_torch[grey], by_dali[grey])
    assert np.abs(by_torch - by_dali).max() <= 1


# Streams


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_batches_stay_whole_while_later_ones_are_made(
    datasets: dict[str, Dataset], loader_name: str, storage: str
) -> None:
    split, geometry = datasets[storage].split("train"), geometry_of(padding=4, flip=True)
    parts = [part for epoch in range(8) for part in training_slices(split, epoch)]
    held, copies = [], []
    for batch in loader_of(loader_name, split, geometry).stream(parts):
        held.append(batch)
        copies.append((batch.images.clone(), batch.labels.clone(), batch.samples.copy()))
    assert len(held) == len(parts) > 30
    for batch, (images, labels, samples) in zip(held, copies, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
        assert_array_equal(batch.samples, samples)
    assert len({batch.images.data_ptr() for batch in held}) == len(held)
    check(held, split, geometry, parts)


@pytest.mark.parametrize(("loader_name", "storage"), PAIRS)
def test_a_loader_serves_one_stream_after_another(datasets: dict[str, Dataset], loader_name: str, storage: str) -> None:
    """Whole epochs, one that begins in its middle, an empty one, and batches that are smaller than the largest."""
    split, geometry = datasets[storage].split("train"), geometry_of(padding=4, flip=True)
    loader = loader_of(loader_name, split, geometry)
    streams = [
        training_slices(split, epoch=0),
        training_slices(split, epoch=1, first_step=2),
        [],
        training_slices(split, epoch=2, rank=1, world_size=4),
        training_slices(split, epoch=3, first_step=len(split) // 8 - 1),
        training_slices(split, epoch=4),
    ]
    for parts in streams:
        check(loader.stream(iter(parts)), split, geometry, parts)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_the_ranks_pixels_are_the_single_ranks(datasets: dict[str, Dataset], loader_name: str, storage: str) -> None:
    split, geometry = datasets[storage].split("train"), geometry_of(padding=4, flip=True, rotation=15.0)
    alone = [b.images for b in loader_of(loader_name, split, geometry).stream(training_slices(split))]
    ranks = [
        [b.images for b in loader_of(loader_name, split, geometry).stream(training_slices(split, 1, rank, 4))]
        for rank in range(4)
    ]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([batches[step] for batches in ranks]), whole)


@pytest.mark.seconds
@pytest.mark.parametrize(("loader_name", "storage"), PAIRS)
def test_killed_at_a_batch_and_restarted_on_other_ranks_the_remaining_batches_are_the_same(
    datasets: dict[str, Dataset], loader_name: str, storage: str
) -> None:
    split, geometry = datasets[storage].split("train"), geometry_of(padding=4, flip=True)
    whole = [
        b.images
        for epoch in (1, 2)
        for b in loader_of(loader_name, split, geometry).stream(training_slices(split, epoch))
    ]
    per_epoch = len(whole) // 2
    killed = int(np.random.default_rng(len(loader_name)).integers(1, per_epoch))
    for world_size in (2, 4):
        ranks = []
        for rank in range(world_size):
            parts = training_slices(split, 1, rank, world_size, killed) + training_slices(split, 2, rank, world_size)
            ranks.append([b.images for b in loader_of(loader_name, split, geometry).stream(parts)])
        remaining = [torch.cat(images) for images in zip(*ranks, strict=True)]
        assert len(remaining) == 2 * per_epoch - killed
        assert all(torch.equal(a, b) for a, b in zip(remaining, whole[killed:], strict=True))


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


# DALI's decoder is native code and may end the process on damaged input: these tests run in processes of their own.


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_sample_is_named_or_gives_the_same_pixels_with_every_loader(tmp_path: Path, kind: str) -> None:
    """Few decoders notice a changed pixel; but the loaders must not differ, or fail in another way."""
    apart(check_damage, tmp_path, kind)


def check_damage(tmp_path: Path, kind: str) -> None:
    encoding, change = DAMAGES[kind]
    files = {key: encode(noise(32, 32, i), encoding) for i, key in enumerate(jpegs(COUNTS))}
    # Checksums would find it before any decoder.
    dataset = without_checksums(make(write_folder(tmp_path / "source", files), tmp_path / "dataset"))
    split = dataset.split("train")
    assert isinstance(split, EncodedSplit)
    before, index = pixels(loader_of("torch", split, geometry_of()), training_slices(split)), 20
    damage(split, index, dataset, change)
    with pytest.raises(UserError, match="is not what was prepared"):
        dataset.verify()
    parts = [part for epoch in range(2) for part in training_slices(split, epoch)]  # the sample is in one or both
    answers: list[str | bytes] = []
    for name in LOADERS:
        try:
            answers.append(pixels(loader_of(name, split, geometry_of()), parts).tobytes())
        except UserError as error:
            answers.append(str(error))
    assert len(set(answers)) == 1
    if isinstance(answers[0], str):
        assert answers[0].startswith(f"sample {index} ({split.key(index)}) cannot be decoded")
        assert "\n" not in answers[0]
    else:
        assert answers[0] != before.tobytes()


def test_the_batches_before_a_damaged_sample_are_served(tmp_path: Path, loader_name: str) -> None:
    apart(check_batches_before_damage, tmp_path, loader_name)


def check_batches_before_damage(tmp_path: Path, loader_name: str) -> None:
    dataset = without_checksums(make(write_folder(tmp_path / "source", jpegs(COUNTS)), tmp_path / "dataset"))
    split = dataset.split("train")
    assert isinstance(split, EncodedSplit)
    parts, geometry = list(evaluation_slices(np.arange(len(split)), 4)), geometry_of()
    expected = [reference(split, geometry, part) for part in parts[:5]]
    damage(split, 23, dataset, DAMAGES["no beginning"][1])
    served = []
    with pytest.raises(UserError, match=r"sample 23 \(train/b/009\.jpg\) cannot be decoded"):
        for batch in loader_of(loader_name, split, geometry).stream(parts):
            served.append(batch.images.numpy())
    assert len(served) <= 5
    for got, right in zip(served, expected, strict=False):
        assert_array_equal(got, right)
    if loader_name.startswith("torch"):  # dali prefetches batches, resident decodes everything first
        assert len(served) == 5


def test_images_that_are_too_small_are_refused_before_the_first_batch(
    datasets: dict[str, Dataset], loader_name: str
) -> None:
    cases = [("raw", 33, "train/0"), ("jpeg", 33, "train/a/000.jpg"), ("mixed", 100, "train/a/000.jpg")]
    for storage, size, name in cases:
        split = datasets[storage].split("train")
        if loader_name not in loaders_of(split):
            continue
        with pytest.raises(UserError, match=rf"^{name} is \d+ x \d+ pixels, smaller than data\.image_size \({size}\)"):
            loader_of(loader_name, split, geometry_of(size=size))
        loader_of(loader_name, split, geometry_of(size=size, resize=size))


def test_the_largest_padding_that_can_be_reflected_is_exact(datasets: dict[str, Dataset], loader_name: str) -> None:
    split, geometry = datasets["jpeg"].split("train"), geometry_of(padding=31, flip=True)
    parts = training_slices(split)
    check(loader_of(loader_name, split, geometry).stream(parts), split, geometry, parts)


# Batches, and the choice of a loader


@given(st.integers(1, 8), st.integers(1, 8))
def test_micro_batches_are_the_batch_in_equal_parts(count: int, size: int) -> None:
    n = count * size
    images = torch.arange(n * 12, dtype=torch.int32).reshape(n, 2, 2, 3).to(torch.uint8)
    batch = Batch(images, torch.arange(n), Slice(3, 50, np.arange(n) + 100))
    parts = list(batch.micro_batches(count))
    assert [len(part) for part in parts] == [size] * count
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert_array_equal(np.concatenate([part.samples for part in parts]), batch.samples)
    assert [(part.slice.epoch, part.slice.start) for part in parts] == [(3, 50 + i * size) for i in range(count)]


def test_auto_is_resident_where_the_pixels_fit_else_dali_and_a_name_is_itself(datasets: dict[str, Dataset]) -> None:
    raw, jpeg, mixed = (datasets[name].split("train") for name in ("raw", "jpeg", "mixed"))
    assert choose("auto", raw, DataConfig(), ALONE).name == "resident"
    assert choose("auto", jpeg, DataConfig(), ALONE).name == "resident"
    assert choose("auto", jpeg, DataConfig(resident_share=0), ALONE).name == "dali"
    assert choose("auto", mixed, DataConfig(), ALONE).name == "dali"
    assert "differ in size" in choose("auto", mixed, DataConfig(), ALONE).reason
    for name in ("torch", "dali", "resident", "synthetic"):
        assert (choose(name, raw, DataConfig(), ALONE).name, choose(name, raw, DataConfig(), ALONE).reason) == (
            name,
            "asked for",
        )


def test_where_dali_does_not_run_pillow_decodes_the_same_and_that_is_said(
    datasets: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg, again = (Dataset(datasets["jpeg"].directory).split("train") for _ in range(2))
    decoded = resident_pixels(again, DataConfig(), ALONE, sharded=False)
    monkeypatch.setattr(nvidia_dali, "problem", lambda on_gpu: "the driver is too old")
    streamed = choose("auto", jpeg, DataConfig(resident_share=0), ALONE)
    assert (streamed.name, streamed.fallback) == ("torch", "the driver is too old: the torch loader loaded the images")
    for name in ("auto", "resident"):
        kept = choose(name, jpeg, DataConfig(), ALONE)
        assert (kept.name, kept.fallback) == ("resident", "the driver is too old: the images were decoded without it")
        assert kept.reason.endswith("; the driver is too old")
    assert torch.equal(resident_pixels(jpeg, DataConfig(), ALONE, sharded=False), decoded)
    with pytest.raises(UserError, match="the driver is too old"):
        loader_of("dali", jpeg, geometry_of())


def test_a_changed_pixel_of_a_large_raw_set_is_named(
    tmp_path: Path, loader_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "source", jpegs(COUNTS))
    raw = prepare(str(source), tmp_path / "raw", lambda line: None, tmp_path, Storage("raw"))
    monkeypatch.setattr("vgg_ddp.data.dataset.QUICKLY_READ", 1000)
    images = np.load(raw.directory / "train.images.npy", mmap_mode="r+")
    images[3, 5, 6, 1] ^= 4
    images.flush()
    split = Dataset(raw.directory).split("train")
    with pytest.raises(UserError, match=r"^sample 3 \(train/3\) is not what was stored; run 'vgg-ddp verify'$"):
        pixels(loader_of(loader_name, split, geometry_of()), training_slices(split))


def test_resident_refuses_images_of_different_sizes(datasets: dict[str, Dataset]) -> None:
    with pytest.raises(UserError, match=r"^loader=resident keeps images of one size, .* set loader=dali$"):
        loader_of("resident", datasets["mixed"].split("train"), geometry_of())


def test_resident_loaders_of_a_split_share_its_pixels(datasets: dict[str, Dataset]) -> None:
    """On a CPU raw pixels are those of the file."""
    raw, jpeg = (datasets[name].split("train") for name in ("raw", "jpeg"))
    one, other = (resident_pixels(jpeg, DataConfig(), ALONE, sharded=False) for _ in range(2))
    assert one is other
    assert isinstance(raw, RawSplit)
    assert np.shares_memory(resident_pixels(raw, DataConfig(), ALONE, sharded=False).numpy(), raw.images)


def test_the_pixels_of_another_device_and_those_of_one_rank_are_others(
    datasets: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "COPIED_AT_A_TIME", 3 * 3 * 32 * 32)
    raw = datasets["raw"].split("train")
    elsewhere = replace(ALONE, device=torch.device("meta"))
    assert resident_pixels(raw, DataConfig(), elsewhere, sharded=False).is_meta
    part = resident_pixels(raw, DataConfig(), World(1, 2, 1, 2, torch.device("cpu")), sharded=True)
    whole = resident_pixels(raw, DataConfig(), ALONE, sharded=False)
    assert torch.equal(part, whole[1::2])


def test_a_rank_that_has_none_of_the_images_decodes_none(datasets: dict[str, Dataset]) -> None:
    last = World(999_999, 1_000_000, 0, 1, torch.device("cpu"))
    assert resident_pixels(datasets["jpeg"].split("train"), DataConfig(), last, sharded=True).shape == (0, 32, 32, 3)


def test_synthetic_batches_have_the_shapes_and_labels_of_the_real_ones(datasets: dict[str, Dataset]) -> None:
    split = datasets["raw"].split("train")
    parts = training_slices(split)
    loader = build("synthetic", split, geometry_of(size=24), DataConfig(), ALONE, 8)
    for batch, part in zip(loader.stream(parts), parts, strict=True):
        assert batch.images.shape == (8, 24, 24, 3)
        assert batch.images.dtype == torch.uint8
        assert_array_equal(batch.labels.numpy(), split.labels[part.samples])
