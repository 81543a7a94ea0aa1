"""Which images are compared in search of near-duplicates, and what a look at one costs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.support.pictures import EXIF_ORIENTATION, encode, noise, smooth, write_folder
from vgg_ddp.analysis import data_quality, duplicates
from vgg_ddp.analysis.budget import BUDGETS
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.splits import EncodedSplit, RawSplit, Split

FULL, SMALL = BUDGETS["full"].compared_pixels, BUDGETS["small"].compared_pixels


class Files(EncodedSplit):
    """A split that repeats these image files."""

    def __init__(self, count: int, *files: bytes) -> None:
        self.name, self.labels = "train", np.zeros(count, np.int64)
        self._files = [np.frombuffer(file, np.uint8) for file in files]
        self._shapes = np.resize([Image.open(io.BytesIO(file)).size[::-1] for file in files], (count, 2))

    def encoded(self, index: int) -> np.ndarray:
        return self._files[index % len(self._files)]


class Pixels(RawSplit):
    """A split of decoded images, all of them black."""

    def __init__(self, count: int, side: int) -> None:
        self.name, self.labels = "train", np.zeros(count, np.int64)
        self.images = np.broadcast_to(np.zeros((), np.uint8), (count, side, side, 3))


def photo(height: int, width: int, which: int = 0, mode: str = "RGB", turned: int = 1, **settings: Any) -> bytes:
    """A photograph as a file, of quality 90 by default; `turned` is its EXIF orientation."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = turned
    whole = Image.fromarray(load_sample_images().images[which]).convert(mode)
    picture = whole.resize((width, height), Image.Resampling.LANCZOS)
    return encode(picture, **{"quality": 90, "exif": exif, **settings})


def counts(test: Split, train: Split, most_pixels: int = FULL) -> tuple[int, int]:
    looked_at = data_quality.affordable(test, train, most_pixels)
    return len(looked_at["test"]), len(looked_at["train"])


def test_a_double_is_found_among_photos_with_more_pixels_than_are_paid_for(tmp_path: Path) -> None:
    files = {
        f"{split}/{'cat' if k < 12 else 'dog'}/{k:02d}.jpg": encode(smooth(224, 224, seed + k), quality=90)
        for split, seed in (("test", 0), ("train", 100))
        for k in range(24)
    }
    files["train/cat/08.jpg"] = encode(smooth(224, 224, 3), quality=50)  # a near-duplicate of test/cat/03.jpg
    source = write_folder(tmp_path / "source", files)
    dataset = prepare(str(source), tmp_path / "dataset", lambda line: None, tmp_path / "downloads")
    signs: list[str] = []
    described = data_quality.describe(dataset, 6 * 224**2, lambda: signs.append("of life"))  # six, decoded whole
    assert len(signs) > 3
    found = described["near_duplicates"]["train"]
    assert (found["looked_at"], found["of"]) == (24, 24)
    named = [(dataset.split("test").key(i), dataset.split("train").key(j)) for i, j, _ in found["pairs"]]
    assert [tuple(Path(key).name for key in pair) for pair in named] == [("03.jpg", "08.jpg")]


@pytest.mark.parametrize(("height", "width", "times"), [(224, 224, 6), (400, 500, 9)])
def test_many_more_photos_are_looked_at_than_could_be_decoded_whole(height: int, width: int, times: int) -> None:
    photos = Files(50_000, photo(height, width))
    assert min(counts(photos, photos)) >= times * (FULL // (height * width))


def test_what_is_decoded_of_a_set_too_large_stays_within_the_bound_and_spends_it() -> None:
    """Recomputed from the sizes that libjpeg decodes to, for files of many kinds."""
    jpegs = [photo(224, 224), photo(400, 500, 1), photo(300, 200, quality=75), photo(90, 1200, 1), photo(64, 64)]
    turned = photo(240, 320, progressive=True)
    png = photo(96, 100, kind="PNG")
    files = [*jpegs, turned, png]

    def charged(file: bytes) -> float:
        if file is png:
            return 96 * 100
        decoded = simplejpeg.decode_jpeg(file, "GRAY", min_height=32, min_width=32)
        return decoded.size + len(file) / (1 if file is turned else 4)

    charges = np.array([charged(file) for file in files])
    splits = {"test": Files(20_001, *files), "train": Files(100_003, *files)}
    for most in (FULL, SMALL):
        looked_at = data_quality.affordable(splits["test"], splits["train"], most)
        for name, samples in looked_at.items():
            assert (samples[0], samples[-1]) == (0, len(splits[name]) - 1)
            assert 0.95 * most < charges[samples % len(files)].sum() < 1.05 * most
            assert set(np.diff(samples)) <= {step := int(np.diff(samples).min()), step + 1}  # evenly spread


def test_a_progressive_file_is_charged_more_and_small_ones_never_less_than_32_by_32() -> None:
    whole, progressive = (Files(50_000, photo(224, 224, progressive=kind)) for kind in (False, True))
    assert counts(progressive, progressive)[0] < 0.6 * counts(whole, whole)[0]
    for tiny in (Pixels(200_000, 8), Files(200_000, encode(noise(8, 8, 0)))):
        assert counts(tiny, tiny) == (FULL // 32**2,) * 2


def test_all_of_cifar10_is_compared_whether_its_pixels_are_stored_or_jpeg_files_of_them() -> None:
    stored = [(Pixels(10_000, 32), Pixels(50_000, 32))]
    stored += [tuple(Files(n, encode(noise(32, 32, 0), quality=q)) for n in (10_000, 50_000)) for q in (75, 100)]  # type: ignore[misc]
    for test, train in stored:
        assert counts(test, train) == (10_000, 50_000)
        assert counts(test, train, SMALL) == (SMALL // 32**2,) * 2


def test_what_one_split_leaves_of_the_bound_is_the_others() -> None:
    file = photo(224, 224)
    share = counts(Files(50_000, file), Files(50_000, file))[0]
    some = share // 2
    assert counts(Files(some, file), Files(50_000, file)) == (some, pytest.approx(2 * share - some, abs=1))
    assert counts(Files(50_000, file), Files(some, file)) == (pytest.approx(2 * share - some, abs=1), some)
    assert counts(Files(some, file), Files(share, file)) == (some, share)


@pytest.mark.parametrize(
    ("height", "width", "settings"),
    [
        (224, 224, {}),
        (400, 500, {"quality": 75}),
        (1500, 2000, {"progressive": True}),
        (224, 224, {"mode": "L"}),
        (90, 1200, {}),
        (33, 47, {}),
        (32, 32, {}),
        (20, 26, {}),
        *((224, 300, {"turned": orientation}) for orientation in range(1, 9)),
    ],
)
def test_a_reduced_grey_picture_is_about_the_one_that_all_pixels_give(
    height: int, width: int, settings: dict[str, Any]
) -> None:
    file = photo(height, width, **settings)
    split = Files(1, file)
    quick, whole = data_quality._brightness(split, 0), split.decode(0)
    assert quick.ndim == 2
    assert quick.size <= whole[..., 0].size
    if min(whole.shape[:2]) >= 224:
        assert quick.size <= 0.07 * whole[..., 0].size
    reduced, all_pixels = duplicates.grey([quick, whole]).astype(float)
    assert np.abs(reduced - all_pixels).mean() < 3.5
    assert np.corrcoef(reduced.ravel(), all_pixels.ravel())[0, 1] > 0.99


def test_what_is_no_jpeg_file_and_one_that_is_not_read_strictly_are_decoded_whole() -> None:
    file = photo(64, 60)
    surplus = file[:-2] + b"surplus " * 9 + file[-2:]
    for unusual in (photo(64, 60, kind="PNG"), surplus):
        split = Files(1, unusual)
        np.testing.assert_array_equal(data_quality._brightness(split, 0), split.decode(0))
