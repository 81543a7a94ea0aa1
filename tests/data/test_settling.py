"""Keys whose values are derived from the data set: sizes, mirroring, the batch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pictures import encode, jpegs, noise, write_folder
from vgg_ddp import preflight
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import stratified_split
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.settling import settle, settle_batch, settle_sizes
from vgg_ddp.data.validation import held_out
from vgg_ddp.errors import UserError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SPLITS = {"train": 8, "val": 3, "test": 2}  # images of each class


class Shapes:
    """A split of which only the heights and widths are known."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self._shapes = np.array(shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shapes(self, samples: np.ndarray) -> np.ndarray:
        return self._shapes[samples]


CASES = {
    "images of the network's size": (DataConfig(), [(32, 32)], (32, None)),
    "a little larger: a crop shows nearly all": (DataConfig(), [(40, 47)], (32, None)),
    "much larger: seen whole": (DataConfig(), [(200, 300)], (32, 36)),
    "larger: with room for a crop": (DataConfig(image_size=24), [(32, 32)], (24, 27)),
    "one much larger": (DataConfig(), [(32, 32), (200, 300)], (32, 36)),
    "smaller: enlarged": (DataConfig(), [(28, 28)], (32, 32)),
    "photos at their own size": (DataConfig(photo_size=64), [(200, 300), (180, 200)], (64, 73)),
    "photos a little larger than that": (DataConfig(photo_size=64), [(64, 80)], (64, None)),
    "few photos among small images": (DataConfig(photo_size=64), [(32, 32), (32, 32), (200, 300)], (32, 36)),
    "the paper's sizes": (DataConfig(image_size=224), [(500, 375)], (224, 256)),
    "asked for: a number": (DataConfig(resize=48), [(200, 300)], (32, 48)),
    "asked for: as they are": (DataConfig(resize=None), [(200, 300)], (32, None)),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_follow_the_images(name: str) -> None:
    config, shapes, expected = CASES[name]
    settled, choices = settle_sizes(config, Shapes(*shapes))  # type: ignore[arg-type]
    assert (settled.image_size, settled.resize) == expected
    assert settled.photo_size is None
    changed = (settled.image_size != config.image_size) + (config.resize == "auto" and settled.resize is not None)
    assert len(choices) == changed  # each choice is reported
    assert settle_sizes(settled, Shapes(*shapes)) == (settled, [])  # type: ignore[arg-type]


def test_sizes_to_grow_over_grow_with_that_of_photos() -> None:
    config = DataConfig(photo_size=64, train_sizes=[16, 20, 24])
    photos, small = (settle_sizes(config, Shapes(shape))[0] for shape in ((200, 300), (32, 32)))  # type: ignore[arg-type]
    assert (photos.train_sizes, small.train_sizes) == ([32, 40, 48], [16, 20, 24])


def test_digits_are_not_mirrored_and_other_pictures_are(digits: Path, tmp_path: Path) -> None:
    left_to_the_data = Config(augment=AugmentConfig(flip="auto"))
    config, choices = settle(left_to_the_data, Dataset(digits))
    assert config.augment.flip is False and len(choices) == 1
    named_otherwise = Dataset(digits)
    named_otherwise.record = msgspec.structs.replace(named_otherwise.record, name="cats and dogs")
    config, choices = settle(left_to_the_data, named_otherwise)
    assert config.augment.flip == "alternating" and choices == []
    assert settle(Config(augment=AugmentConfig(flip=True)), Dataset(digits))[0].augment.flip is True


@pytest.mark.parametrize(
    ("images", "batch"), [(50_000, 256), (5120, 256), (5119, 128), (1438, 64), (640, 32), (300, 16), (40, 16)]
)
def test_small_sets_get_a_batch_and_a_rate_that_fit(images: int, batch: int) -> None:
    config = Config(batch=256, min_steps_per_epoch=20, data=DataConfig(validation=0))
    settled, choices = settle_batch(config, images)
    assert settled.batch == batch
    assert settled.optimizer.learning_rate == config.optimizer.learning_rate * batch / 256
    assert len(choices) == (batch != 256)
    assert settle_batch(settled, images) == (settled, [])


@pytest.mark.parametrize(("batch", "images", "rate"), [(256, 50_000, 0.2), (32, 50_000, 0.025), (512, 50_000, 0.4)])
def test_a_rate_that_is_for_one_batch_is_scaled_for_another(batch: int, images: int, rate: float) -> None:
    config = Config(batch=batch, optimizer=OptimizerConfig(learning_rate=0.2, rate_batch=256))
    settled, choices = settle_batch(config, images)
    assert (settled.batch, settled.optimizer.learning_rate, settled.optimizer.rate_batch) == (batch, rate, None)
    assert choices == ([] if batch == 256 else [f"optimizer.learning_rate={rate:g}: 0.2 is for batch=256"])
    assert settle_batch(settled, images) == (settled, [])


def test_a_batch_that_was_asked_for_stays() -> None:
    assert settle_batch(Config(batch=256), 300) == (Config(batch=256), [])


@pytest.mark.parametrize(
    ("batch", "accumulation", "settled"),
    [(512, 32, 64), (512, 1, 16), (96, 32, 96), (48, 16, 48), (1000, 2, 250), (80, 16, 80)],
)
def test_a_batch_is_halved_only_while_micro_batches_are_whole_and_of_several_images(
    batch: int, accumulation: int, settled: int
) -> None:
    config = Config(batch=batch, accumulation=accumulation, min_steps_per_epoch=40)
    assert settle_batch(config, 100)[0].batch == settled


@pytest.mark.parametrize(
    ("batch", "accumulation", "ranks", "settled"),
    [(512, 4, 8, 32), (512, 1, 16, 16), (256, 1, 32, 32), (256, 1, 2, 16), (512, 1, 512, 512)],
)
def test_a_halved_batch_still_divides_over_the_ranks(batch: int, accumulation: int, ranks: int, settled: int) -> None:
    config = Config(
        batch=batch, accumulation=accumulation, min_steps_per_epoch=40, data=DataConfig(image_size=64, resize=None)
    )
    found = settle_batch(config, 400, ranks)[0]
    assert found.batch == settled
    assert found.local_batch(ranks) * ranks == settled


def test_a_continued_training_keeps_its_batch_on_other_ranks() -> None:
    """Its rate too: both were halved alike."""
    config = Config(batch=256, min_steps_per_epoch=40, data=DataConfig(image_size=16, resize=None))
    on_many, _ = settle_batch(config, 400, 32)
    assert on_many.batch == 64  # of two images for each: one alone has no variance in the last batch norm
    assert settle_batch(config, 400, 2)[0].batch == 16
    assert settle_batch(config, 400, 2, continued=64)[0] == on_many
    assert settle_batch(config, 400, 2, continued=48)[0].batch == 16  # which halving does not give


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place = tmp_path_factory.mktemp("photos")
    files = jpegs({f"{split}/{label}": 8 for split in ("train", "test") for label in "ab"}, (70, 90))
    return prepare(str(write_folder(place / "source", files)), place / "dataset", lambda line: None, place)


BROKEN = {  # rules that the photo size of 64 pixels breaks, but that of small images does not
    "data.resize=48": r"data\.resize \(48\) is smaller than data\.image_size \(64\)",
    "evaluate.scales=[32,48]": r"evaluate\.scales \(32\) is smaller than data\.image_size \(64\)",
    "augment.scale_jitter=[40,80]": r"augment\.scale_jitter starts below data\.image_size \(64\)",
}


@pytest.mark.parametrize("word", BROKEN)
def test_a_key_that_does_not_fit_the_size_of_photos_is_one_line(word: str, photos: Dataset, tmp_path: Path) -> None:
    words = [f"data.source={photos.directory}", f"run.dir={tmp_path}/run", word]
    said = rf"{BROKEN[word]}; sizes were fitted to the data set \(data\.image_size=64: .*data\.photo_size=null$"
    with pytest.raises(UserError, match=said):
        preflight.check_training(str(QUICKSTART), [*words, "data.photo_size=64"])
    assert preflight.check_training(str(QUICKSTART), [*words, "data.photo_size=null"]).config.data.image_size == 24


def set_of(sizes: dict[str, tuple[int, int]], folder: Path) -> Dataset:
    """Two images of each class in each split: of 36 x 36 pixels, and of the split's own height and width."""
    files = {}
    for split, size in sizes.items():
        for number, (height, width) in enumerate([(36, 36), size] * 2):
            files[f"{split}/{'ab'[number // 2]}/{number % 2}.png"] = encode(noise(height, width, number), "PNG")
    return prepare(str(write_folder(folder / "source", files)), folder / "dataset", lambda line: None, folder)


def test_a_test_image_that_cannot_be_shown_is_told_before_the_training(tmp_path: Path) -> None:
    dataset = set_of({"train": (36, 36), "test": (40, 20)}, tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: {dataset.directory}, image_size: 32, validation: 0}}")
    recipe, words = str(tmp_path / "recipe.yaml"), [f"run.dir={tmp_path}/run"]
    small = (
        r"^test/a/1\.png is 20 x 40 pixels, smaller than data\.image_size \(32\); set data\.resize=32 to enlarge it$"
    )
    with pytest.raises(UserError, match=small):
        preflight.check_training(recipe, words)
    enlarged = preflight.check_training(recipe, [*words, "data.resize=32"])
    assert enlarged.config.data.resize == 32
    with pytest.raises(UserError, match="loader=resident keeps images of one size, and those of test differ"):
        preflight.check_training(recipe, [*words, "data.resize=32", "loader=resident"])


def test_it_is_said_that_only_the_middle_of_test_images_is_seen(tmp_path: Path) -> None:
    dataset = set_of({"train": (36, 36), "test": (200, 300)}, tmp_path)
    config, (line,) = settle(Config(), dataset)
    assert config.data.resize is None
    assert line.startswith(
        "data.resize=null: of 2 of 4 test images, of 36 to 200 pixels, the network sees only the middle"
    )
    assert settle(Config(data=DataConfig(resize=32)), dataset)[1] == []
    both = set_of({"train": (200, 300), "test": (200, 300)}, tmp_path / "both")
    assert settle(Config(data=DataConfig(resize=None)), both)[1] == []  # crops, as was asked for


def test_a_set_s_own_validation_images_take_the_place_of_a_share(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", jpegs({f"{s}/{c}": n for s, n in SPLITS.items() for c in "ab"}))
    dataset = prepare(str(source), tmp_path / "dataset", lambda line: None, tmp_path)
    train, own = held_out(dataset, DataConfig(validation=0.25), seed=0)
    assert train.tolist() == list(range(16))
    assert (own.split, own.samples.tolist()) == ("validation", list(range(6)))
    config, choices = settle(Config(batch=64, min_steps_per_epoch=1), dataset)
    assert config.batch == 16 and "validation: on the 6 validation images of source" in choices[0]
    train, none = held_out(dataset, DataConfig(validation=0), seed=0)
    assert (len(train), len(none)) == (16, 0)
    assert settle(Config(data=DataConfig(validation=0)), dataset)[1] == []


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    share=st.floats(0.05, 1),
    validation=st.sampled_from([0.0, 0.2, 0.5]),
    seed=st.integers(0, 9),
)
def test_a_share_of_each_class_is_trained_on_the_same_for_every_run(
    counts: list[int], share: float, validation: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    dataset = OfLabels(labels)
    config = DataConfig(train_share=share, validation=validation)
    train, own = held_out(dataset, config, seed)  # type: ignore[arg-type]
    used = np.sort(np.concatenate([train, own.samples]))
    assert len(np.unique(used)) == len(used) and own.split == "train"
    for k, count in enumerate(counts):
        assert (labels[used] == k).sum() == round(share * count)
        assert (labels[own.samples] == k).sum() == round(validation * round(share * count))
    train, own = held_out(dataset, config, seed + 1)  # type: ignore[arg-type]
    assert np.sort(np.concatenate([train, own.samples])).tolist() == used.tolist()
    train, own = held_out(dataset, DataConfig(validation=validation), seed)  # type: ignore[arg-type]
    plain = stratified_split(labels, validation, seed)
    assert [train.tolist(), own.samples.tolist()] == [part.tolist() for part in plain]


class OfLabels:
    """A data set as `held_out` sees one: the labels of its training images, and no validation images of its own."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.splits, self.record = labels, (), self

    def split(self, name: str) -> OfLabels:
        assert name == "train"
        return self
