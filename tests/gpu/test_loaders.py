"""Loaders that keep their pixels on the GPU give the same pixels as on the CPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.support.pictures import jpegs, smooth, write_folder
from vgg_ddp import loaders
from vgg_ddp.augment.geometry import training_geometry
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import Split
from vgg_ddp.distributed.world import World

CPU = World(0, 1, 0, 1, torch.device("cpu"))
DATA = DataConfig(workers=0, decode_threads=1)
AUGMENTATIONS = {
    "crop and flip": AugmentConfig(crop_padding=4, flip=True),
    "turned": AugmentConfig(rotation=20.0),
    "resized crop": AugmentConfig(random_resized_crop=[0.2, 1.0], flip=True),
}


@pytest.fixture(scope="module")
def splits(few_digits: Path, tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> dict[str, Split]:
    """Stored pixels, and JPEG files of one size, as smooth as photographs."""
    folder = tmp_path_factory.mktemp("photos")
    files = jpegs({"train/a": 20, "train/b": 20, "test/a": 1, "test/b": 1}, size=(32, 32), kind=smooth)
    photos = prepare(str(write_folder(folder / "files", files)), folder / "dataset", lambda line: None, folder)
    return {"raw": Dataset(few_digits).split("train"), "jpeg": photos.split("train")}


def build(name: str, split: Split, augmentation: AugmentConfig, world: World) -> loaders.Loader:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return loaders.build(name, split, training_geometry(DATA, augmentation, 11), DATA, world, batch=16)


def epoch(loader: loaders.Loader, split: Split) -> list[loaders.Batch]:
    return list(loader.stream(Order(11, np.arange(len(split)), 16).slices(epoch=1)))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("storage", ["raw", "jpeg"])
@pytest.mark.parametrize("name", ["torch", "resident", "dali"])
def test_pixels_are_those_of_the_cpu(
    name: str, storage: str, augmentation: str, splits: dict[str, Split], world: World
) -> None:
    split = splits[storage]
    found, expected = (epoch(build(name, split, AUGMENTATIONS[augmentation], where), split) for where in (world, CPU))
    moved_only = augmentation == "crop and flip" and (storage == "raw" or name == "torch")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.images.device == ours.labels.device == world.device
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        levels = (ours.images.cpu().int() - theirs.images.int()).abs()
        if moved_only or world.device.type == "cpu":
            assert levels.max() == 0
        else:  # another implementation rounds the inverse cosine transform or the interpolation differently
            assert levels.max() <= 4
            assert levels.float().mean() < 0.5


def test_jpeg_files_are_decoded_on_the_gpu(splits: dict[str, Split], world: World) -> None:
    """The profiler shows kernels of a decoder there."""
    loader = build("dali", splits["jpeg"], AUGMENTATIONS["crop and flip"], world)
    if world.device.type == "cpu":
        assert len(epoch(loader, splits["jpeg"])) == 2
        pytest.skip("a CPU has no kernels to show")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        epoch(loader, splits["jpeg"])
        torch.cuda.synchronize()
    kernels = {event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    assert any(re.search("jpeg|idct|huff|ycc|ycbcr|chroma", name, re.IGNORECASE) for name in kernels), sorted(kernels)
