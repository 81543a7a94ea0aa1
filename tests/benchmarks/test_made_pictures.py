"""Pictures that are made: of every class, of many sizes, and the same ones for a seed."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from benchmarks.made_pictures import OUTLINES, make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_a_folder_has_each_class_and_follows_from_its_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        make(tmp_path / name, 4, 48, seed)
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same and one.keys() == other.keys() and all(one[key] != other[key] for key in one)
    assert len(set(one.values())) == len(one) == 6 * len(OUTLINES)
    assert {key.rpartition("/")[0] for key in one} == {
        f"{split}/{kind}" for split in ("train", "test") for kind in OUTLINES
    }
    shapes = set()
    for data in one.values():
        with Image.open(io.BytesIO(data)) as image:
            shapes.add(image.size)
    assert min(map(min, shapes)) == max(map(min, shapes)) == 48 and max(map(max, shapes)) > 60
