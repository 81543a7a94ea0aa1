"""Every layout in which data sets come, with pictures whose colour tells their class."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.cifar_archives import NAMES10, binary_files10, python2, python_files10, python_files100, random_part
from tests.support.pictures import encode, write_folder, write_tar

SIDE = 8
CLASSES = ("ant", "bee", "cow")
PICTURES = [encode(np.full((SIDE, SIDE, 3), 80 * label, dtype=np.uint8), "PNG") for label in range(len(CLASSES))]


def pictures(counts: Mapping[str, int], suffix: str = ".png") -> dict[str, bytes]:
    """Pictures by path; `counts` gives the number in each folder, whose name is their class."""
    return {
        f"{folder}/{i:02d}{suffix}": PICTURES[CLASSES.index(folder.split("/")[-1])]
        for folder, count in counts.items()
        for i in range(count)
    }


def splits(*names: str, count: int = 2) -> dict[str, bytes]:
    return pictures({f"{name}/{label}": count for name in names for label in CLASSES})


FLAT = pictures(dict.fromkeys(CLASSES, 10))
SHARED = {"train": 24, "test": 6}  # of FLAT: a fifth of each class


@dataclass(frozen=True)
class Layout:
    """A layout, and what must come out of it.

    Attributes:
        make: writes it into a folder and returns the path to give as the source.
        counts: images of each split; empty if it is refused.
        remark: a part of what is reported, or of the refusal.
        coloured: whether each picture's colour tells its class.
        classes: the names of the classes.
    """

    make: Callable[[Path], Path]
    counts: dict[str, int] = field(default_factory=dict)
    remark: str = ""
    coloured: bool = True
    classes: tuple[str, ...] = CLASSES


def folder(
    files: Mapping[str, bytes], *, inside: str = "", links: Mapping[str, str] | None = None
) -> Callable[[Path], Path]:
    """Files in a folder, whose subfolder `inside` is the source; `links` maps the names of links to their targets."""

    def make(place: Path) -> Path:
        write_folder(place / "set", files)
        for name, target in (links or {}).items():
            (place / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "set" / name).symlink_to(target)
        return place / "set" / inside

    return make


def tar(files: Mapping[str, bytes], name: str = "set.tar") -> Callable[[Path], Path]:
    return lambda place: write_tar(place / name, files, name.partition(".tar")[2].lstrip("."))


def zipped(files: Mapping[str, bytes], cut: int | None = None) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        (place / "set.zip").write_bytes(data.getvalue()[:cut])
        return place / "set.zip"

    return make


def below(outer: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{outer}/{name}": data for name, data in files.items()}


def empty_class(place: Path) -> Path:
    write_folder(place / "set", splits("train", "test"))
    (place / "set/train/dog").mkdir()
    return place / "set"


def npz(name: str, **arrays: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return {name: file.getvalue()}


def coloured(count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of `count` pictures of each class, and their labels."""
    labels = np.repeat(np.arange(len(CLASSES)), count)
    return np.broadcast_to((80 * labels).reshape(-1, *[1] * len(shape)), (len(labels), *shape)).astype(np.uint8), labels


def keras(name: str = "set.npz", shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> dict[str, bytes]:
    (images, labels), (tests, answers) = coloured(4, shape), coloured(2, shape)
    return npz(name, x_train=images, y_train=labels[:, None], x_test=tests, y_test=answers[:, None])


def medical() -> dict[str, bytes]:
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        arrays[f"{split}_images"], labels = coloured(count, (SIDE, SIDE))
        arrays[f"{split}_labels"] = labels[:, None]
    return npz("organs.npz", **arrays)


def cifar_like(count: int) -> dict[str, bytes]:
    images = np.zeros((count, 32, 32, 3), dtype=np.uint8)
    return npz("cifar.npz", x_train=images, y_train=np.arange(count), x_test=images, y_test=np.arange(count))


def parquet(
    *names: str, labelled: bool = True, count: int = 4, classes: tuple[str, ...] = CLASSES, lists: bool = False
) -> dict[str, bytes]:
    """Files as `datasets` writes them, with class names in the metadata. `lists`: a list of labels for each image."""
    import pyarrow
    from pyarrow import parquet as files

    labels = [label for label in range(len(classes)) for _ in range(count)]
    pictures = [PICTURES[CLASSES.index(classes[label])] for label in labels]
    columns: dict[str, Any] = {"img": [{"bytes": picture, "path": None} for picture in pictures]}
    columns["boxes"] = [[0.5]] * len(pictures)
    features: dict[str, Any] = {"img": {"_type": "Image"}, "boxes": [{"_type": "Value"}]}
    if labelled:
        columns["label"], features["label"] = labels, {"names": classes, "_type": "ClassLabel"}
    if lists:
        columns["label"] = [[label] for label in labels]
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    buffer = pyarrow.BufferOutputStream()
    files.write_table(table, buffer)
    return dict.fromkeys(names, buffer.getvalue().to_pybytes())


def samples(text: Callable[[int], str], suffix: str = "cls", count: int = 2) -> dict[str, bytes]:
    """The members of a WebDataset tar."""
    members = {}
    for label in range(len(CLASSES)):
        for i in range(count):
            members[f"{label}{i:03d}.png"] = PICTURES[label]
            members[f"{label}{i:03d}.{suffix}"] = text(label).encode()
    return members


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return write_tar(Path(place) / "x.tar", files).read_bytes()


def linked_tar() -> bytes:
    """A tar with a link in it, which is not a tar of samples."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("latest")
        member.type, member.linkname = tarfile.SYMTYPE, "src"
        archive.addfile(member)
    return data.getvalue()


def kaggle(**more: bytes) -> dict[str, bytes]:
    rows = [(i, label) for label in range(len(CLASSES)) for i in range(1 + 10 * label, 11 + 10 * label)]
    table = "id,label\n" + "".join(f"{i},{CLASSES[label]}\n" for i, label in rows)
    files = {f"train/{i}.png": PICTURES[label] for i, label in rows} | {"trainLabels.csv": table.encode()}
    return files | {"test/1.png": PICTURES[0], "sampleSubmission.csv": b"id,label\n1,ant\n"} | more


def folders() -> Iterator[tuple[str, Layout]]:
    both = {"train": 6, "test": 6}
    plain = splits("train", "test")
    yield "train and test", Layout(folder(plain), both)
    yield (
        "train and val",
        Layout(folder(splits("train", "val")), both, "the 6 images of the validation split are tested on"),
    )
    yield "train and valid", Layout(folder(splits("train", "valid")), both, "of the validation split are tested on")
    yield "train and validation", Layout(folder(splits("train", "validation")), both, "there is no test split")
    yield (
        "train, val and test",
        Layout(folder(splits("train", "val", "test")), {"train": 6, "validation": 6, "test": 6}),
    )
    yield (
        "train, valid and test",
        Layout(folder(splits("train", "valid", "test")), {"train": 6, "validation": 6, "test": 6}),
    )
    yield "train, dev and eval", Layout(folder(splits("train", "dev", "eval")), both | {"validation": 6})
    yield (
        "another thing called eval",
        Layout(
            folder(plain | {"eval/plots/1.png": PICTURES[0]}),
            both,
            "files left out, because they are not images in a class folder: 1",
        ),
    )
    yield "in a folder called dev", Layout(folder(below("dev/pets", plain)), both)
    yield (
        "splits inside of classes",
        Layout(
            folder(pictures({}) | {f"{c}/{s}/1.png": PICTURES[0] for c in CLASSES for s in ("train", "test")}),
            remark="has test and train inside of its classes; an image folder is train/CLASS/*",
        ),
    )
    beside = npz("features.npz", features=np.zeros(3)) | {"code.tar": linked_tar(), "half.parquet": b"PAR1"}
    left = "files left out, because they are not images in a class folder: 3"
    yield "files of other sets beside", Layout(folder(plain | beside), both, left)
    yield "in capitals", Layout(folder(splits("Train", "VAL", "Test")), {"train": 6, "validation": 6, "test": 6})
    yield "training and testing", Layout(folder(splits("training", "testing")), both)
    yield "classes alone", Layout(folder(FLAT), SHARED, "6 of 30 images are set apart for it (data.test_share=0.2")
    yield "train alone", Layout(folder(below("train", FLAT)), SHARED, "there is no test split, so 6 of 30 images")
    unlabelled = below("train", FLAT) | {"test/1.png": PICTURES[0]}
    yield (
        "test without classes",
        Layout(folder(unlabelled), SHARED, "files left out, because they are not images in a class folder: 1"),
    )
    yield "wrapped", Layout(folder(below("pets-1.0/data", plain)), both)
    yield "classes wrapped", Layout(folder(below("pets/images", FLAT)), SHARED)
    yield "deeper in a class", Layout(folder(plain | {"train/ant/day 1/x.png": PICTURES[0]}), {"train": 7, "test": 6})
    yield (
        "a class called train",
        Layout(
            folder(pictures({"ant": 5, "bee": 5}) | {f"train/{i}.png": PICTURES[2] for i in range(5)}),
            {"train": 12, "test": 3},
            classes=("ant", "bee", "train"),
        ),
    )
    yield "all of webp", Layout(folder(webp()), both)
    yield (
        "a class of bmp",
        Layout(folder(pictures({f"{s}/{c}": 2 for s in ("train", "test") for c in ("ant", "bee")}) | bmp()), both),
    )
    yield "an empty class", Layout(empty_class, both, "the class folder train/dog is empty")
    yield (
        "a class of phone pictures",
        Layout(
            folder(plain | {"train/dog/1.heic": b"x", "train/dog/2.heic": b"x"}),
            remark="class 'dog' in train has no image that is read, but files with .heic",
        ),
    )
    yield "a class without suffixes", Layout(folder(plain | {"train/dog/1": b"x"}), remark="but files with no suffix")
    yield (
        "two names of a split",
        Layout(folder(splits("train", "val", "valid")), remark="val and valid, both of them valid"),
    )
    yield (
        "two sets",
        Layout(
            folder(below("cats", plain) | below("dogs", plain)),
            remark="holds several sets: cats/, dogs/; give one of them",
        ),
    )
    yield (
        "no class in train",
        Layout(folder({"train/1.png": PICTURES[0], **splits("test")}), remark="no images in train/CLASS"),
    )


def webp() -> dict[str, bytes]:
    encoded = [encode(np.full((SIDE, SIDE, 3), 80 * k, dtype=np.uint8), "WEBP", lossless=True) for k in range(3)]
    return {
        f"{split}/{label}/{i}.webp": encoded[CLASSES.index(label)]
        for split in ("train", "test")
        for label in CLASSES
        for i in range(2)
    }


def bmp() -> dict[str, bytes]:
    data = encode(np.full((SIDE, SIDE, 3), 160, dtype=np.uint8), "BMP")
    return {f"{split}/cow/{i}.bmp": data for split in ("train", "test") for i in range(2)}


def hidden() -> Iterator[tuple[str, Layout]]:
    both = {"train": 6, "test": 6}
    plain = splits("train", "test")
    for name in (
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/ant/.ipynb_checkpoints/0-checkpoint.png",
        "train/@eaDir/ant/0.png",
        "__MACOSX/train/ant/._00.png",
        "train/ant/._00.png",
        ".git/train/ant/x.png",
        "train/ant/Thumbs.db",
        "train/.DS_Store",
        "$RECYCLE.BIN/train/ant/1.png",
    ):
        yield (
            f"hidden {name}",
            Layout(folder(plain | {name: b"x"}), both, "hidden or system files and folders left out: 1, such as "),
        )
    yield (
        "hidden in a tar",
        Layout(tar(plain | {"./train/ant/._00.png": b"x"}), both, "hidden or system files and folders left out: 1"),
    )
    yield (
        "a circle of links",
        Layout(folder(plain, links={"train/ant/loop": ".."}), both, "links left out, because they lead nowhere, or"),
    )
    two = {"train/ant/loop": "..", "train/bee/loop": "../.."}
    yield (
        "two circles",
        Layout(folder(plain, links=two), both, "to a folder that they lie in: 2, such as train/"),
    )
    yield (
        "a link to the folder above all",
        Layout(folder(plain, links={"train/ant/up": "../../.."}), both, "to a folder that they lie in: 1"),
    )
    yield (
        "a link to itself",
        Layout(folder(plain, links={"train/ant/self.png": "self.png"}), both, "to a folder that they lie in: 1"),
    )
    elsewhere = below("store", pictures({"cow": 2})) | below("set", splits("train", "test"))
    linked = {name: data for name, data in elsewhere.items() if not name.startswith("set/train/cow")}
    yield (
        "a class that is a link",
        Layout(folder(linked, inside="set", links={"set/train/cow": "../../store/cow"}), both),
    )


def archives() -> Iterator[tuple[str, Layout]]:
    both = {"train": 6, "test": 6}
    plain = splits("train", "test")
    yield "a tar", Layout(tar(plain), both)
    yield (
        "a tar.gz with a README",
        Layout(
            tar(plain | {"README.md": b"x"}, "set.tar.gz"),
            both,
            "files left out, because they are not images in a class folder: 1",
        ),
    )
    yield (
        "a tar that wraps",
        Layout(tar(below("pets", plain) | {"README": b"x"}), both, "not images in a class folder: 1"),
    )
    beside = below("pets", plain) | {"docs/a.txt": b"x", "scripts/b.py": b"x"}
    yield "a tar with two folders beside", Layout(tar(beside), both, "are not images in a class folder: 2")
    yield (
        "a tar with train, val and test",
        Layout(tar(splits("train", "val", "test")), {"train": 6, "validation": 6, "test": 6}),
    )
    yield "a tar of classes", Layout(tar(below("pets", FLAT)), SHARED)
    yield "a zip", Layout(zipped(plain), both)
    mac = below("pets", plain) | {"__MACOSX/pets/train/ant/._00.png": b"x"}
    yield "a zip from a Mac", Layout(zipped(mac), both, "hidden or system files and folders left out: 1")
    yield "a zip from Windows", Layout(zipped({name.replace("/", "\\"): data for name, data in plain.items()}), both)
    yield "a zip of classes", Layout(zipped(FLAT), SHARED)
    yield "half a zip", Layout(zipped(plain, cut=900), remark="is not a whole")
    yield "a zip that reaches out", Layout(zipped(plain | {"../x.png": b"x"}), remark="outside of its folder")
    yield (
        "a 7z archive",
        Layout(folder({"a.7z": b"7z\xbc\xaf\x27\x1c" + bytes(50)}, inside="a.7z"), remark="is a 7z archive"),
    )
    yield (
        "a RAR archive",
        Layout(folder({"a.rar": b"Rar!\x1a\x07\x00" + bytes(50)}, inside="a.rar"), remark="is a RAR archive"),
    )


def known_sets() -> Iterator[tuple[str, Layout]]:
    parts = {f"data_batch_{i}": random_part(i, 10, 10) for i in range(1, 6)} | {"test_batch": random_part(6, 10, 10)}
    ten, hundred = python_files10(python2, parts), python_files100(python2)
    counts, names = {"train": 50, "test": 10}, tuple(NAMES10)
    whole = {"counts": counts, "coloured": False, "classes": names}
    unpacked = {name.split("/")[1]: data for name, data in ten.items()}
    yield "cifar-10-batches-py", Layout(lambda place: write_folder(place / "cifar-10-batches-py", unpacked), **whole)
    yield "torchvision's root", Layout(folder(ten), **whole)
    binary = binary_files10(parts)
    yield "cifar-10-batches-bin in a folder", Layout(folder(below("deep/er", binary)), **whole)
    yield "torchvision's root with the archive too", Layout(folder(ten | {"cifar-10-python.tar.gz": b"x"}), **whole)
    packed = tar_bytes(ten)
    yield "the archive in a folder", Layout(folder({"cifar-10-python.tar.gz": packed}), **whole)
    yield "a zip of cifar-10-batches-py", Layout(zipped(ten), **whole)
    yield (
        "both CIFARs",
        Layout(folder(ten | hundred), remark="holds several sets: cifar-10-batches-py/, cifar-100-python/"),
    )
    lacking = {name: data for name, data in ten.items() if "test_batch" not in name}
    yield "cifar-10-batches-py in part", Layout(folder(lacking), remark="lacks cifar-10-batches-py/test_batch")

    yield "Kaggle's", Layout(folder(kaggle()), SHARED, "left out, because trainLabels.csv gives them no class: 2")
    yield "Kaggle's in a zip", Layout(zipped(below("cifar-10", kaggle())), SHARED, "gives them no class: 2")
    beside = {name.removeprefix("train/"): data for name, data in kaggle().items() if name.startswith("train/")}
    table = "file,class\n" + "".join(f"{name},{CLASSES[(int(name[:-4]) - 1) // 10]}\n" for name in beside)
    yield "a table beside its pictures", Layout(folder(beside | {"labels.csv": table.encode()}), SHARED)
    yield (
        "Kaggle's, not all unpacked",
        Layout(
            folder({n: d for n, d in kaggle().items() if n != "train/7.png"}),
            remark="trainLabels.csv names images that are not there (rows: 1)",
        ),
    )

    numbers = ("0", "1", "2")
    yield "Keras's npz", Layout(folder(keras(), inside="set.npz"), {"train": 12, "test": 6}, classes=numbers)
    yield (
        "Keras's npz in a folder",
        Layout(folder(keras("a.npz") | {"README": b"x"}), {"train": 12, "test": 6}, classes=numbers),
    )
    first = keras(shape=(3, SIDE, SIDE))
    yield "channels first", Layout(folder(first, inside="set.npz"), {"train": 12, "test": 6}, classes=numbers)
    yield "MedMNIST's npz", Layout(folder(medical()), {"train": 12, "validation": 3, "test": 6}, classes=numbers)
    counts = {"train": 10, "test": 10}
    yield "CIFAR-10 as npz", Layout(folder(cifar_like(10), inside="cifar.npz"), counts, "", False, names)
    floats = npz("set.npz", x_train=np.zeros((4, 8, 8, 3)), y_train=np.arange(4))
    yield "floats as npz", Layout(folder(floats, inside="set.npz"), remark="its images are float64, not uint8")
    objects = npz("set.npz", x_train=np.array([{}], dtype=object), y_train=np.arange(1))
    yield "pickles as npz", Layout(folder(objects, inside="set.npz"), remark="is not an archive of images and labels")
    others = npz("set.npz", images=np.zeros(3))
    yield (
        "other names in npz",
        Layout(folder(others, inside="set.npz"), remark="has the arrays images, and not x_train"),
    )

    counts = {"train": 6, "test": 6}
    yield "a WebDataset", Layout(tar(samples(str, count=10), "train.tar"), SHARED, "", True, numbers)
    two = {f"{split}/{i}.tar": tar_bytes(samples(str, count=1)) for split in ("train", "test") for i in range(2)}
    named = two | {"classnames.txt": "\n".join(CLASSES).encode()}
    yield "a WebDataset in shards", Layout(folder(named), counts)
    texts = {f"pets-{split}-000.tar": tar_bytes(samples(lambda label: CLASSES[label])) for split in ("train", "test")}
    yield "a WebDataset with class names", Layout(folder(texts), counts)
    objects = {
        f"{split}-0.tar": tar_bytes(samples(lambda label: json.dumps({"label": label}), "json"))
        for split in ("train", "val")
    }
    yield "a WebDataset with json", Layout(folder(objects), counts, "there is no test split", True, numbers)
    inside = below("train", samples(str)) | below("test", samples(str))
    yield "a WebDataset with splits inside", Layout(tar(inside), {"train": 6, "test": 6}, classes=numbers)
    called = {"train/00.png": PICTURES[2], "train/00.cls": b"2"}
    alone = {"train.tar": tar_bytes(samples(str)), "test.tar": tar_bytes(samples(str) | called)}
    yield "a WebDataset with a class called train", Layout(folder(alone), {"train": 6, "test": 7}, classes=numbers)
    padded = samples(lambda label: f"{label:03d}", count=10)
    yield "a WebDataset of padded numbers", Layout(tar(padded), SHARED, classes=numbers)
    partly = samples(str, count=10) | {"logo.png": PICTURES[0], "0000.seg.png": PICTURES[1]}
    said = "images left out, because they have no class, or another image of their sample has: 2, such as set.tar/"
    yield "a WebDataset with images without a class", Layout(tar(partly), SHARED, said, classes=numbers)
    two = samples(str) | {"0000.jpg": PICTURES[0]}
    yield "a WebDataset with two images in one", Layout(tar(two), remark="are two images in one sample; take one of")
    some = {f"{name}.tar": tar_bytes(samples(str)) for name in ("train", "more", "dev", "eval")}
    said = "files taken as train, because their names say no split: 6, such as more.tar/"
    three = {"train": 12, "validation": 6, "test": 6}
    yield "a WebDataset with a name of no split", Layout(folder(some), three, said, classes=numbers)
    sidecars = splits("train", "test") | {"train/ant/00.json": b'{"boxes": []}'}
    yield "a tar with json of other use", Layout(tar(sidecars), counts, "not images in a class folder: 1")


def parquet_sets() -> Iterator[tuple[str, Layout]]:
    """Made on demand, since pyarrow is an optional dependency."""
    counts = {"train": 12, "test": 12}
    files = parquet("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet")
    yield "Hugging Face's", Layout(folder(files | {"README.md": b"x"}), counts)
    blobs = {f"blobs/{i}": data for i, data in enumerate(files.values())}
    links = {f"snapshots/abc/{name}": f"../../../blobs/{i}" for i, name in enumerate(files)}
    yield "Hugging Face's cache", Layout(folder(blobs, links=links), counts)
    links |= {name.replace("abc", "def"): target for name, target in links.items()}
    several = "holds several sets: snapshots/abc/, snapshots/def/; give one of them"
    yield "Hugging Face's cache of two revisions", Layout(folder(blobs, links=links), remark=several)
    fewer = parquet("test.parquet", classes=("ant", "cow"))
    yield "other numbers of classes", Layout(folder(parquet("train.parquet") | fewer), {"train": 12, "test": 8})
    numbered = parquet("train.parquet", labelled=False, lists=True)
    yield "lists of classes", Layout(folder(numbered), remark="has images with several classes, such as [0]; each must")
    mixed = folder(parquet("a/dev-0.parquet", "b/train-0.parquet", "c/part-0.parquet", "d/eval-0.parquet"))
    said = "files taken as train, because their names say no split: 1, such as c/part-0.parquet"
    yield "a file of no split", Layout(mixed, {"train": 24, "validation": 12, "test": 12}, said)
    forms = folder(parquet("a/train-0.parquet", "b/train-0.parquet", "a/test-0.parquet"))
    said = "the files of train lie in 2 folders, such as a and b, and are taken together"
    yield "two forms of one set", Layout(forms, {"train": 24, "test": 12}, said)
    both = parquet("train.parquet") | {"half.parquet": b"PAR1", "assets/1.png": PICTURES[0], "more/1.png": PICTURES[0]}
    yield (
        "half a Parquet file beside a whole one",
        Layout(folder(both), remark="half.parquet is not a whole Parquet file"),
    )
    table = parquet("features.parquet", labelled=False)
    left = "files left out, because they are not images in a class folder: 1"
    yield (
        "Parquet beside an image folder",
        Layout(folder(splits("train", "test") | table), {"train": 6, "test": 6}, left),
    )
    one = parquet("set.parquet", count=10)
    yield "one Parquet file", Layout(folder(one, inside="set.parquet"), SHARED, "there is no test split")
    bare = parquet("a.parquet", labelled=False)
    yield (
        "Parquet without classes",
        Layout(folder(bare), remark="has the columns img, boxes, and not one of images"),
    )
    yield (
        "half a Parquet file",
        Layout(folder({"a.parquet": one["set.parquet"][:200]}), remark="is not a whole Parquet file"),
    )


LAYOUTS = dict([*folders(), *hidden(), *archives(), *known_sets()])
