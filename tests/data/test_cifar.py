"""Archives in the official CIFAR formats, with torchvision's reader as the reference; malicious code never runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from numpy.testing import assert_array_equal

from tests.support.cifar_archives import (
    FILES10,
    FILES100,
    NAMES10,
    NAMES100,
    PER_FILE,
    Dumps,
    Part,
    binary_files10,
    binary_files100,
    python2,
    python3,
    python_files10,
    python_files100,
    random_part,
)
from tests.support.pictures import write_folder, write_tar
from vgg_ddp.data.sources import cifar, open_source
from vgg_ddp.data.sources.source import PixelSource
from vgg_ddp.errors import UserError


def opened(tmp_path: Path, files: dict[str, bytes]) -> PixelSource:
    source = open_source(write_tar(tmp_path / "archive.tar.gz", files, "gz"))
    assert isinstance(source, PixelSource)
    return source


def refusal(tmp_path: Path, files: dict[str, bytes]) -> str:
    """The message with which an archive of these files is refused: one line that names the archive."""
    path = write_tar(tmp_path / "archive.tar.gz", files, "gz")
    with pytest.raises(UserError) as raised:
        open_source(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def reference(tmp_path: Path, files: dict[str, bytes], train: bool) -> torchvision.datasets.CIFAR10:
    """What torchvision reads from the same files, unpacked."""
    write_folder(tmp_path / "unpacked", files)
    sums = [(Path(name).name, hashlib.md5(data).hexdigest()) for name, data in files.items()]
    whole = torchvision.datasets.CIFAR10 if "cifar-10-batches-py" in str([*files]) else torchvision.datasets.CIFAR100

    class Generated(whole):  # type: ignore[misc, valid-type]
        train_list = [s for s in sums if s[0].startswith(("data_batch", "train"))]  # noqa: RUF012
        test_list = [s for s in sums if s[0].startswith("test")]  # noqa: RUF012
        meta = {**whole.meta, "md5": dict(sums)[whole.meta["filename"]]}  # noqa: RUF012

    return Generated(tmp_path / "unpacked", train=train)


# What is right is read to the last pixel


def test_the_pickles_made_here_are_what_python_reads_as_such() -> None:
    value = {b"labels": [0, 99, 2**31 - 1], b"data": FILES10["test_batch"].data, b"name": [b"x" * 300, b""]}
    for dumps in (python2, python3):
        read = pickle.loads(dumps(value), encoding="bytes")  # noqa: S301
        assert_array_equal(read.pop(b"data"), value[b"data"])
        assert read == {k: v for k, v in value.items() if k != b"data"}


@pytest.mark.parametrize("dumps", [python2, python3])
@pytest.mark.parametrize(("files", "names"), [(python_files10, NAMES10), (python_files100, NAMES100)])
def test_a_python_archive_is_read_as_torchvision_reads_it(
    tmp_path: Path, files: Callable[[Dumps], dict[str, bytes]], names: list[str], dumps: Dumps
) -> None:
    source = opened(tmp_path, files(dumps))
    assert source.classes == names
    for split, train in (("train", True), ("test", False)):
        expected = reference(tmp_path, files(python2), train)
        assert_array_equal(source.splits[split].images, expected.data)
        assert source.splits[split].labels.tolist() == expected.targets
        assert expected.classes == names


@pytest.mark.parametrize(
    ("binary", "python"), [(binary_files10, python_files10), (binary_files100, python_files100)], ids=["10", "100"]
)
def test_a_binary_archive_gives_what_the_python_one_gives(tmp_path: Path, binary: Any, python: Any) -> None:
    left, right = opened(tmp_path, binary()), opened(tmp_path, python())
    assert (left.name, left.classes, left.groups) == (right.name, right.classes, right.groups)
    for split in ("train", "test"):
        assert_array_equal(left.splits[split].images, right.splits[split].images)
        assert_array_equal(left.splits[split].labels, right.splits[split].labels)


def test_a_pixel_lies_where_the_format_says(tmp_path: Path) -> None:
    """cs.toronto.edu/~kriz/cifar.html: 1024 red, 1024 green, 1024 blue; each 32 rows of 32."""
    images = opened(tmp_path, python_files10()).splits["train"].images
    data = FILES10["data_batch_2"].data
    for row, column, channel in [(0, 0, 0), (0, 31, 0), (31, 0, 1), (13, 7, 2)]:
        assert images[PER_FILE + 3, row, column, channel] == data[3, 1024 * channel + 32 * row + column]


def test_an_array_stored_by_columns_is_the_same_array(tmp_path: Path) -> None:
    files = {name: Part(np.asfortranarray(p.data), p.labels, p.coarse) for name, p in FILES10.items()}
    for dumps in (python2, python3):
        left, right = opened(tmp_path, python_files10(dumps, files)), opened(tmp_path, python_files10(dumps))
        assert_array_equal(left.splits["train"].images, right.splits["train"].images)


def test_the_groups_of_cifar10_hold_each_class_once(tmp_path: Path) -> None:
    groups = opened(tmp_path, python_files10()).groups
    assert sorted(name for group in groups.values() for name in group) == NAMES10


@pytest.mark.parametrize("make", [python_files100, binary_files100])
def test_the_groups_of_cifar100_are_those_of_its_coarse_labels(tmp_path: Path, make: Any) -> None:
    source = opened(tmp_path, make())
    seen = {NAMES100[label] for label in FILES100["train"].labels}
    assert sorted(name for group in source.groups.values() for name in group) == sorted(seen)
    for group, members in source.groups.items():
        assert {int(name[-2:]) // 5 for name in members} == {int(group[-2:])}


def test_cifar100_without_the_names_of_its_groups_has_none_and_mixed_up_ones_are_refused(tmp_path: Path) -> None:
    files = binary_files100()
    del files["cifar-100-binary/coarse_label_names.txt"]
    assert opened(tmp_path, files).groups == {}
    train = FILES100["train"]
    mixed = {**FILES100, "train": Part(train.data, [3] * len(train.labels), train.coarse)}
    assert "images of one class lie in two groups" in refusal(tmp_path, python_files100(python2, mixed))


def test_members_are_found_in_any_order_among_others(tmp_path: Path) -> None:
    files = {**python_files10(), "cifar-10-batches-py/extra": b"\x80\x02cos\nsystem\n.", "other/data_batch_1": b"junk"}
    shuffled = dict(random.Random(1).sample(sorted(files.items()), len(files)))
    left, right = opened(tmp_path, shuffled), opened(tmp_path, python_files10())
    assert_array_equal(left.splits["train"].images, right.splits["train"].images)


# What is malicious is refused and never runs


class Reduces:
    """Pickled, it asks the reader to call `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def attacks(canary: Path) -> dict[str, bytes]:
    """Pickles that create `canary` when Python's own reader reads them."""
    system, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    evil = Reduces(eval, python)
    return {
        "os.system, as Python 2 wrote it": b"cposix\nsystem\n(S'" + system.encode() + b"'\ntR.",
        "os.system, protocol 2": b"\x80\x02cos\nsystem\n" + text(system) + b"\x85R.",
        "os.system by INST": b"(S'" + system.encode() + b"'\nios\nsystem\n.",
        "os.system by OBJ": b"(cos\nsystem\n" + text(system) + b"o.",
        "os.system by a stacked name": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(system) + b"\x85R.",
        "builtins.eval": pickle.dumps(evil),
        "builtins.eval, protocol 5": pickle.dumps(evil, protocol=5),
        "builtins.exec, protocol 2": pickle.dumps(Reduces(exec, python), protocol=2),
        "subprocess": pickle.dumps(Reduces(subprocess.call, ["touch", str(canary)])),
        "hidden in a batch": python3({b"labels": [0], b"data": [evil]}),
        "an array of objects": python3({b"labels": [0], b"data": np.array([[evil]], dtype=object)}),
        "before a right batch": pickle.dumps(evil, protocol=2)[:-1]
        + b"0"
        + python_files10(python3)["cifar-10-batches-py/data_batch_1"][2:],
    }


@pytest.mark.parametrize("kind", list(attacks(Path("canary"))))
@pytest.mark.parametrize("member", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_calls_anything_is_refused_and_never_runs(tmp_path: Path, kind: str, member: str) -> None:
    canary = tmp_path / "canary"
    attack = attacks(canary)[kind]
    pickle.loads(attack, encoding="bytes")  # noqa: S301 - the attack is a real one: Python's own reader falls for it
    assert canary.exists()
    canary.unlink()
    message = refusal(tmp_path, {**python_files10(), f"cifar-10-batches-py/{member}": attack})
    assert "which no data set needs" in message
    assert not canary.exists()


def test_every_name_but_numpys_own_is_refused(tmp_path: Path) -> None:
    names = ["os system", "builtins getattr", "numpy load", "numpy.core.multiarray scalar", "numpy dtype.__class__"]
    for name in [
        *names,
        "_codecs decode",
        "copyreg _reconstructor",
        "vgg_ddp.data.sources.cifar read",
        "numpy ndarray.tofile",
    ]:
        module, attribute = name.split()
        stacked = b"\x80\x04" + text(module) + text(attribute) + b"\x93."
        message = refusal(tmp_path, {**python_files10(), "cifar-10-batches-py/test_batch": stacked})
        assert f"it names {module}.{attribute}, which no data set needs" in message


def test_a_pickle_cannot_change_the_reader() -> None:
    """BUILD sets attributes on an object; it must not be able to change what a name stands for."""
    before = [(name, dict(vars(builder))) for name, builder in cifar._BUILDERS.items()]
    for module, name in cifar._BUILDERS:
        change = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}" + text("__doc__") + text("changed") + b"s\x86b."
        with contextlib.suppress(pickle.UnpicklingError, TypeError, AttributeError):
            cifar.read_plain_pickle(change)
    assert [(name, dict(vars(builder))) for name, builder in cifar._BUILDERS.items()] == before
    assert all(builder.__doc__ != "changed" for builder in cifar._BUILDERS.values())


def test_a_pickle_that_asks_for_more_memory_than_it_has_bytes_is_refused() -> None:
    """Ten bytes that make Python's reader allocate room for four billion values."""
    program = "from vgg_ddp.data.sources import cifar; cifar.read_plain_pickle(b'\\x80\\x02Nr\\xff\\xff\\xff\\x7f.')"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=limited, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("_pickle.UnpicklingError"), done.stderr


# What is broken is refused in one line


def broken_pickles() -> dict[str, bytes]:
    right, p = python_files10()["cifar-10-batches-py/data_batch_1"], FILES10["data_batch_1"]
    short, wide = p.data[:, :-1], np.zeros((PER_FILE, 3072), dtype=np.uint16)
    batches: dict[str, Any] = {
        "too few labels": {b"labels": p.labels[:-1], b"data": p.data},
        "too few pixels": {b"labels": p.labels, b"data": short},
        "pixels of two bytes": {b"labels": p.labels, b"data": wide},
        "pixels that are objects": {b"labels": p.labels, b"data": p.data.astype(object)},
        "pixels that are no array": {b"labels": p.labels, b"data": [1, 2, 3]},
        "no labels": {b"data": p.data},
        "no data": {b"labels": p.labels},
        "text for keys": {"labels": p.labels, "data": p.data},
        "a list": [p.labels, p.data],
        "nothing": None,
        "a label of -1": {b"labels": [-1, *p.labels[1:]], b"data": p.data},
        "a label of 10": {b"labels": [10, *p.labels[1:]], b"data": p.data},
        "a label too large for any integer": {b"labels": [2**70, *p.labels[1:]], b"data": p.data},
        "labels that are words": {b"labels": [b"cat"] * PER_FILE, b"data": p.data},
        "labels in lists": {b"labels": [[label] for label in p.labels], b"data": p.data},
        "labels that are fractions": {b"labels": [0.5] * PER_FILE, b"data": p.data},
    }
    cuts = {f"cut to {len(right) * n // 4} bytes": right[: len(right) * n // 4] for n in range(4)}
    bent = {"bytes for a shape": right.replace(b"J\x07\x00\x00\x00J\x00\x0c\x00\x00\x86", b"U\x02ab")}
    return {**{name: python3(batch) for name, batch in batches.items()}, **cuts, **bent, "text": b"<html></html>"}


@pytest.mark.parametrize("kind", list(broken_pickles()))
def test_a_batch_that_is_not_in_the_format_is_refused(tmp_path: Path, kind: str) -> None:
    files = {**python_files10(), "cifar-10-batches-py/data_batch_1": broken_pickles()[kind]}
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, files)


def test_labels_may_not_slip_from_one_batch_into_the_next(tmp_path: Path) -> None:
    """One label too few in a batch and one too many in the next: the total is right, but labels are misassigned."""
    first, second = FILES10["data_batch_1"], FILES10["data_batch_2"]
    files = {
        **FILES10,
        "data_batch_1": Part(first.data, first.labels[:-1], []),
        "data_batch_2": Part(second.data, [first.labels[-1], *second.labels], []),
    }
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, python_files10(python2, files))


@pytest.mark.parametrize("names", [{}, {b"label_names": [1, 2]}, {b"label_names": [n.encode() for n in NAMES10[:3]]}])
def test_names_that_are_missing_wrong_or_too_few_are_refused(tmp_path: Path, names: dict[bytes, Any]) -> None:
    files = {**python_files10(), "cifar-10-batches-py/batches.meta": python2(names)}
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, files)


@pytest.mark.parametrize("make", [binary_files10, binary_files100])
@pytest.mark.parametrize("change", [-1, 1, -3000])
def test_a_binary_file_of_no_whole_number_of_records_is_refused(tmp_path: Path, make: Any, change: int) -> None:
    files = make()
    member = next(name for name in files if "train" in name or "data_batch_3" in name)
    files[member] = files[member][:change] if change < 0 else files[member] + b"\0" * change
    assert "format" in refusal(tmp_path, files)


def test_a_binary_label_out_of_range_is_refused(tmp_path: Path) -> None:
    files = binary_files10()
    member = "cifar-10-batches-bin/test_batch.bin"
    files[member] = b"\x0a" + files[member][1:]
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, files)
    files = binary_files100()
    member = "cifar-100-binary/test.bin"
    files[member] = bytes([19, 100]) + files[member][2:]
    assert "is not in the CIFAR-100 format" in refusal(tmp_path, files)


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    empty = {name: random_part(0, 10, 0) for name in FILES10}
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, binary_files10(empty))
    assert "is not in the CIFAR-10 format" in refusal(tmp_path, python_files10(python2, empty))


@pytest.mark.parametrize("make", [python_files10, python_files100, binary_files10, binary_files100])
def test_an_archive_that_lacks_a_member_is_refused_and_the_member_named(tmp_path: Path, make: Any) -> None:
    optional = ("readme.html", "coarse_label_names.txt")
    for member in (name for name in make() if not name.endswith(optional)):
        message = refusal(tmp_path, {name: data for name, data in make().items() if name != member})
        assert re.search(rf"lacks {re.escape(member)}: it is not the official CIFAR-100?", message)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.95])
def test_an_archive_that_is_cut_is_refused(tmp_path: Path, share: float) -> None:
    path = write_tar(tmp_path / "archive.tar.gz", python_files10(), "gz")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"archive\.tar\.gz is not a whole tar archive .* download it again$"):
        open_source(path)


def test_a_member_that_is_a_link_to_a_file_of_this_machine_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(python_files10()["cifar-10-batches-py/test_batch"])
    files = python_files10()
    del files["cifar-10-batches-py/test_batch"]
    path = write_tar(tmp_path / "archive.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link, io.BytesIO())
    with pytest.raises(UserError, match="cifar-10-batches-py/test_batch"):
        open_source(path)
