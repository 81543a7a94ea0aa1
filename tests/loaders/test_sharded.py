"""Resident pixels sharded over the ranks: each batch equals that of a rank with all pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.rank_processes import CPU, Ranks
from vgg_ddp.augment.geometry import evaluation_geometry, training_geometry
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import Order, Slice, evaluation_slices
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.loaders import build
from vgg_ddp.loaders.resident import resident_pixels

pytestmark = pytest.mark.processes

SHARDED = DataConfig(residency="sharded")
GEOMETRIES = {
    "moved": training_geometry(SHARDED, AugmentConfig(crop_padding=4, flip=True), 7),
    "scaled": training_geometry(SHARDED, AugmentConfig(random_resized_crop=[0.2, 1.0]), 7),
    "whole": evaluation_geometry(SHARDED),
}


def parts(count: int, rank: int, size: int, name: str) -> list[Slice]:
    """Three training batches, or 100 images in batches of 30, of which the ranks get different numbers."""
    if name == "whole":
        return list(evaluation_slices(np.arange(100), 30, rank, size))
    return list(Order(7, np.arange(count), 24).slices(0, rank, size))[:3]


def serve(directory: str, output: str) -> int:
    """One rank: write the pixels of its batches."""
    with joined(devices=CPU) as world:
        split = Dataset(directory).split("train")
        arrays = {}
        for name, geometry in GEOMETRIES.items():
            loader = build("resident", split, geometry, SHARDED, world, 24)
            for turn in range(2):
                for number, batch in enumerate(loader.stream(parts(len(split), world.rank, world.size, name))):
                    arrays[f"{name} {turn} {number}"] = batch.images.numpy()
        arrays["kept"] = np.array(len(resident_pixels(split, SHARDED, world, sharded=True)))
        np.savez(f"{output}/{world.rank}.npz", **arrays)
    return 0


@pytest.mark.parametrize("size", [2, 3])
def test_sharded_ranks_make_the_batches_of_one_with_all_pixels(digits: Path, tmp_path: Path, size: int) -> None:
    ranks = Ranks(serve, (str(digits), str(tmp_path)), size, tmp_path / "output")
    assert ranks.wait() == [0] * size, ranks.stderr
    split = Dataset(digits).split("train")
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    kept = 0
    for rank in range(size):
        with np.load(tmp_path / f"{rank}.npz") as found:
            kept += int(found["kept"])
            for name, geometry in GEOMETRIES.items():
                loader = build("resident", split, geometry, DataConfig(), alone, 24)
                expected = [b.images.numpy() for b in loader.stream(parts(len(split), rank, size, name))]
                assert len(expected) >= 1
                for turn in range(2):
                    assert f"{name} {turn} {len(expected)}" not in found
                    for number, images in enumerate(expected):
                        np.testing.assert_array_equal(found[f"{name} {turn} {number}"], images)
    assert kept == len(split)
