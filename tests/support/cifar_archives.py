"""Archives in the official CIFAR formats (cs.toronto.edu/~kriz/cifar.html), made from generated pixels.

The "python" version is written twice: as Python 2 wrote the official archives, and as Python 3 and today's NumPy write them.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_FILE = 7
NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = [f"fine_{i:02d}" for i in range(100)]
COARSE = [f"coarse_{i:02d}" for i in range(20)]  # of five classes each, in their order


@dataclass(frozen=True)
class Part:
    """One file of an archive: pixels as the format lays them out (red, green and blue planes), and labels."""

    data: NDArray[np.uint8]
    labels: list[int]
    coarse: list[int]


def random_part(seed: int, classes: int, count: int = PER_FILE) -> Part:
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = generator.integers(0, classes, count).tolist()
    return Part(data, labels, [label // 5 for label in labels])


FILES10 = {
    name: random_part(seed, 10) for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
}
FILES100 = {"train": random_part(7, 100, 23), "test": random_part(8, 100)}


def python3(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def python2(value: Any) -> bytes:
    """Protocol 2 by hand: `str` is bytes with its own opcodes, arrays are built by numpy.core.multiarray."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    shape = _python2(value.shape[0]) + _python2(value.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + _python2(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _python2(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    fortran = value.flags.fnc
    state = b"(K\x01" + shape + dtype + (b"\x88" if fortran else b"\x89") + _python2(value.tobytes("A")) + b"tb"
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _python2(b"b") + b"\x87R" + state


Dumps = Callable[[Any], bytes]


def python_files10(dumps: Dumps = python2, files: dict[str, Part] = FILES10) -> dict[str, bytes]:
    contents = {"batches.meta": dumps({b"num_cases_per_batch": 10000, b"label_names": [n.encode() for n in NAMES10]})}
    for name, p in files.items():
        batch = {b"batch_label": b"training batch", b"labels": p.labels, b"data": p.data, b"filenames": [b"x.png"]}
        contents[name] = dumps(batch)
    return {f"cifar-10-batches-py/{name}": data for name, data in {**contents, "readme.html": b"<html>"}.items()}


def python_files100(dumps: Dumps = python2, files: dict[str, Part] = FILES100) -> dict[str, bytes]:
    names = [n.encode() for n in NAMES100]
    contents = {"meta": dumps({b"fine_label_names": names, b"coarse_label_names": [name.encode() for name in COARSE]})}
    for name, p in files.items():
        contents[name] = dumps({b"data": p.data, b"coarse_labels": p.coarse, b"fine_labels": p.labels})
    return {f"cifar-100-python/{name}": data for name, data in contents.items()}


def binary_files10(files: dict[str, Part] = FILES10) -> dict[str, bytes]:
    contents = {"batches.meta.txt": "".join(f"{name}\n" for name in [*NAMES10, ""]).encode()}
    for name, p in files.items():
        contents[f"{name}.bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in zip(p.labels, p.data))
    return {f"cifar-10-batches-bin/{name}": data for name, data in contents.items()}


def binary_files100(files: dict[str, Part] = FILES100) -> dict[str, bytes]:
    contents = {"fine_label_names.txt": "".join(f"{name}\n" for name in NAMES100).encode()}
    contents["coarse_label_names.txt"] = "".join(f"{name}\n" for name in COARSE).encode()
    for name, p in files.items():
        rows = zip(p.coarse, p.labels, p.data)
        contents[f"{name}.bin"] = b"".join(bytes([coarse, fine]) + row.tobytes() for coarse, fine, row in rows)
    return {f"cifar-100-binary/{name}": data for name, data in contents.items()}
