"""Every kind of picture and every layout that users bring: what must come out, the same from every loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.support.layouts import (
    CLASSES,
    LAYOUTS,
    PICTURES,
    Layout,
    folder,
    parquet,
    parquet_sets,
    samples,
    splits,
    tar,
    tar_bytes,
)
from tests.support.odd_pictures import KINDS, SIDE, UNREADABLE, Kind
from tests.support.pictures import write_folder
from vgg_ddp.augment.geometry import evaluation_geometry
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.conversion import Policy
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.prepare import prepare
from vgg_ddp.data.sources import find_source
from vgg_ddp.data.splits import EncodedSplit, RawSplit
from vgg_ddp.data.storage import Storage
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import build

# Remarks on kinds in addition to those in `odd_pictures`.
MORE_REMARKS = {"16 bits.png": "has 16 bits", "one colour clear.png": "has a transparent colour"}
LOADERS = ("dali", "torch", "resident")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """All readable kinds in one class and the unreadable ones in another, prepared."""
    folder = tmp_path_factory.mktemp("zoo")
    some = KINDS["rgb.png"].data
    files = {f"train/kinds/{name}": kind.data for name, kind in KINDS.items()} | {"train/others/some.png": some}
    files |= {f"train/others/{name}": kind.data for name, kind in UNREADABLE.items()}
    files |= {"test/kinds/some.png": some}
    source = str(write_folder(folder / "source", files))
    return prepare(source, folder / "dataset", print, folder, Storage(), Policy(unreadable="drop"))


@pytest.fixture(scope="module")
def passes(zoo: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """The pixels that each loader gives, by the picture's name."""
    split, data = zoo.split("train"), DataConfig(image_size=SIDE, resize=None, workers=0)
    names = [split.key(i).removeprefix("train/kinds/") for i in range(len(split))]
    found = {}
    for loader in LOADERS:
        built = build(loader, split, evaluation_geometry(data), data, ALONE, 64)
        images = [batch.images.numpy().copy() for batch in built.stream(evaluation_slices(np.arange(len(split)), 64))]
        found[loader] = dict(zip(names, np.concatenate(images), strict=True))
    return found


def test_there_are_many_kinds() -> None:
    assert len(KINDS) + len(UNREADABLE) > 120


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_picture_is_the_same_from_every_loader(
    zoo: Dataset, passes: dict[str, dict[str, np.ndarray]], name: str
) -> None:
    kind = KINDS[name]
    assert kind.pixels is not None
    for loader in LOADERS:
        assert_array_equal(passes[loader][name], kind.pixels, err_msg=loader)
    split = zoo.split("train")
    assert isinstance(split, EncodedSplit)
    index = next(i for i in range(len(split)) if split.key(i) == f"train/kinds/{name}")
    assert (split.encoded(index).tobytes() == kind.data) == kind.kept
    assert_said(zoo, f"train/kinds/{name} ", replace(kind, remark=MORE_REMARKS.get(name, kind.remark)))


def test_what_dali_alone_cannot_decode_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a data set with the original files, as earlier versions prepared it."""
    monkeypatch.setattr("vgg_ddp.data.inspection.plain", lambda data, decoded, damaged: (data, "qoi"))
    name = "plain.qoi"
    files = {f"{split}/{label}/{name}": KINDS[name].data for split in ("train", "test") for label in "ab"}
    dataset = prepare(str(write_folder(tmp_path / "source", files)), tmp_path / "dataset", print, tmp_path)
    split, data = dataset.split("train"), DataConfig(image_size=SIDE, resize=None)
    for loader in ("dali", "resident"):
        with pytest.raises(
            UserError, match=r"loader=dali cannot decode train/a/plain.qoi or .*; prepare .* or set loader=torch"
        ):
            [
                *build(loader, split, evaluation_geometry(data), data, ALONE, 64).stream(
                    evaluation_slices(np.arange(2), 2)
                )
            ]


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_left_out_and_said(zoo: Dataset, name: str) -> None:
    split = zoo.split("train")
    assert f"train/others/{name}" not in {split.key(i) for i in range(len(split))}
    assert_said(zoo, f"train/others/{name} cannot be read: ", UNREADABLE[name])


def assert_said(zoo: Dataset, start: str, kind: Kind) -> None:
    notes = [note for note in zoo.record.notes if note.startswith(start)]
    if kind.remark or kind.pixels is None:
        assert any(kind.remark in note for note in notes), notes
    else:
        assert notes == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_its_images_under_their_classes(name: str, tmp_path: Path) -> None:
    check(LAYOUTS[name], tmp_path)


def test_parquet_gives_its_images_under_their_classes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name, layout in parquet_sets():
        (tmp_path / name).mkdir()
        check(layout, tmp_path / name)


MORE_NAMES = "\n".join([*CLASSES, "dog", "eel"]).encode()
BOTH = {f"{split}.tar": tar_bytes(samples(str)) for split in ("train", "test")}
# The remark on the first class, which has only test images.
NOT_TRAINED = "class 'ant' has no training images, only 2 of test; add some, take the class away"
UNEVEN_SPLITS = {
    "train.tar": tar_bytes({n: d for n, d in samples(str).items() if n[0] != "0"}),
    "test.tar": BOTH["test.tar"],
}
CLASSES_IN_USE = {
    "numbers from 1": Layout(
        tar(samples(lambda label: str(label + 1), count=10)),
        {"train": 24, "test": 6},
        "classes left out, because no image is of them: 1, such as '0'",
        classes=("1", "2", "3"),
    ),
    "more names than classes": Layout(
        folder(BOTH | {"classnames.txt": MORE_NAMES}),
        {"train": 6, "test": 6},
        "classes left out, because no image is of them: 2, such as 'dog'",
    ),
    "a class to test on alone": Layout(folder(UNEVEN_SPLITS | {"classnames.txt": MORE_NAMES}), remark=NOT_TRAINED),
}


@pytest.mark.parametrize("name", CLASSES_IN_USE)
def test_classes_are_those_that_images_are_of(name: str, tmp_path: Path) -> None:
    check(CLASSES_IN_USE[name], tmp_path)


def test_parquet_of_some_classes_has_no_others(tmp_path: Path) -> None:
    """As `datasets` filters a set: the names of all classes stay in the file."""
    files = pytest.importorskip("pyarrow.parquet")
    source = write_folder(tmp_path / "set", parquet("set.parquet", count=10))
    table = files.read_table(source / "set.parquet")
    files.write_table(table.filter(table.column("label").to_numpy() != 1), source / "set.parquet")
    lines: list[str] = []
    dataset = prepare(str(source), tmp_path / "dataset", lines.append, tmp_path)
    assert (dataset.classes, dataset.record.splits["train"].class_counts) == (["ant", "cow"], [8, 8])
    assert any("no image is of them: 1, such as 'bee'" in line for line in lines)
    split = dataset.split("train")
    assert [int(split.decode(i)[0, 0, 0]) for i in range(len(split))] == [160 * label for label in split.labels]


def test_parquet_may_have_lists_beside_and_rows_without_an_image(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": PICTURES[k % 3], "path": None} for k in range(30)]
    boxes = [[0.5, 1.0]] * 30
    columns = {"boxes": boxes, "image": [None, *images[1:]], "label": [k % 3 for k in range(30)]}
    (tmp_path / "set").mkdir()
    files.write_table(pyarrow.table(columns), tmp_path / "set" / "train.parquet")
    source = str(tmp_path / "set")
    with pytest.raises(UserError, match="image train/00000000 cannot be read: the file is empty; repair or remove it"):
        prepare(source, tmp_path / "dataset", print, tmp_path)
    dataset = prepare(source, tmp_path / "dataset", print, tmp_path, policy=Policy(unreadable="drop"))
    assert sum(split.count for split in dataset.record.splits.values()) == 29


def check(layout: Layout, folder: Path) -> None:
    lines: list[str] = []
    source, target = str(layout.make(folder)), folder / "dataset"
    if not layout.counts:
        with pytest.raises(UserError) as refused:
            prepare(source, target, lines.append, folder)
        assert layout.remark in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not target.exists()
        return
    dataset = prepare(source, target, lines.append, folder)
    assert {name: split.count for name, split in dataset.record.splits.items()} == layout.counts
    assert tuple(dataset.classes) == layout.classes
    assert any(layout.remark in line for line in lines)
    if not layout.remark:
        usual = ("prepared ", "stored as PNG", "are uneven: ", "set apart for it")
        assert [line for line in lines if not any(part in line for part in usual)] == []
    for name in layout.counts if layout.coloured else ():
        split = dataset.split(name)
        assert isinstance(split, EncodedSplit | RawSplit)
        assert [int(split.decode(i)[0, 0, 0]) for i in range(len(split))] == [80 * label for label in split.labels]


def test_a_damaged_parquet_file_is_named_wherever_the_damage_lies(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = write_folder(tmp_path / "set", parquet("train.parquet", count=10))
    whole = (source / "train.parquet").read_bytes()
    for place in (len(whole) // 3, 30, len(whole) - 100):
        damaged = bytearray(whole)
        damaged[place : place + 40] = bytes(255 - byte for byte in damaged[place : place + 40])
        (source / "train.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.parquet is not a whole Parquet file|cannot be read"):
            prepare(str(source), tmp_path / "dataset", lambda line: None, tmp_path)


@pytest.mark.parametrize(
    "described",
    [
        "{",
        "[]",
        "null",
        '{"info": null}',
        '{"info": {"features": []}}',
        '{"info": {"features": {"label": {"names": null}}}}',
    ],
)
def test_what_other_tools_describe_in_a_parquet_file_is_as_if_it_were_not_there(described: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": PICTURES[k % 3], "path": None} for k in range(30)]
    table = pyarrow.table({"image": images, "label": [k % 3 for k in range(30)]})
    (tmp_path / "set").mkdir()
    files.write_table(table.replace_schema_metadata({"huggingface": described}), tmp_path / "set" / "train.parquet")
    dataset = prepare(str(tmp_path / "set"), tmp_path / "dataset", lambda line: None, tmp_path)
    assert dataset.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "holds no image with a class"),
        ([0.0, 1.0, float("nan")], "has images without a class; take their files away"),
    ],
)
def test_parquet_without_classes_is_one_line(labels: list[float], said: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": PICTURES[0], "path": None}] * len(labels), kind)
    (tmp_path / "set").mkdir()
    files.write_table(
        pyarrow.table({"image": images, "label": pyarrow.array(labels, pyarrow.float64())}),
        tmp_path / "set/train.parquet",
    )
    with pytest.raises(UserError, match=said):
        prepare(str(tmp_path / "set"), tmp_path / "dataset", lambda line: None, tmp_path)


def test_an_official_archive_among_an_image_folder_s_files_is_not_the_set(tmp_path: Path) -> None:
    """As after `data.source=cifar10` in the same folder, which leaves its download there."""
    archive = {"datasets/downloads/cifar-10-binary.tar.gz": b"\x1f\x8b"}
    source = write_folder(tmp_path / "set", splits("train", "test") | archive)
    dataset = prepare(str(source), tmp_path / "dataset", lambda line: None, tmp_path)
    assert dataset.classes == list(CLASSES)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,label\n00,ant\n00,ant\n01,bee\n02,cow\n", None),
        ("id,label\n00,ant\n00,bee\n01,bee\n02,cow\n", "gives 00 the classes ant and bee"),
        ("id,label\n00,ant\n01,bee\n09,cow\n", r"names images that are not there \(rows: 1\)"),
    ],
)
def test_a_table_that_names_an_image_twice(table: str, said: str | None, tmp_path: Path) -> None:
    pictures = {f"train/{k:02d}.png": PICTURES[k % 3] for k in range(3)}
    source = write_folder(tmp_path / "set", pictures | {"trainLabels.csv": table.encode()})
    if said is not None:
        with pytest.raises(UserError, match=said):
            find_source(str(source), tmp_path, print)
    else:
        found = find_source(str(source), tmp_path, print)
        assert found.classes == list(CLASSES)


def test_names_of_classes_that_are_no_utf_8_are_one_line(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", BOTH | {"classnames.txt": "b\xeate\nantenne\ncow".encode("latin1")})
    with pytest.raises(UserError, match=r"classnames\.txt is not UTF-8"):
        prepare(str(source), tmp_path / "dataset", print, tmp_path)


def test_one_array_under_the_name_of_an_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with (tmp_path / "set" / "images.npz").open("wb") as file:
        np.save(file, np.zeros((3, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"images\.npz is not an archive of images and labels"):
        prepare(str(tmp_path / "set"), tmp_path / "dataset", print, tmp_path)


def test_the_letters_of_a_suffix_may_be_large(tmp_path: Path) -> None:
    pixels, labels = np.zeros((30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
    (tmp_path / "set").mkdir()
    with (tmp_path / "set" / "SET.NPZ").open("wb") as file:
        np.savez(file, x_train=pixels, y_train=labels, x_test=pixels[:3], y_test=labels[:3])
    dataset = prepare(str(tmp_path / "set" / "SET.NPZ"), tmp_path / "dataset", print, tmp_path)
    assert (dataset.name, dataset.record.splits["train"].count) == ("SET", 30)
