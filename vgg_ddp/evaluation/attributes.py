"""What its user knows of the test images beyond their labels: a table of attributes, and the labels that people gave."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.config.analysis import AnalysisConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.splits import Split
from vgg_ddp.errors import UserError

LARGEST = 256 * 2**20  # bytes of a file
LONGEST = 200  # letters of a value
SUM_OF_SHARES = 1e-6  # if an image's shares sum to no more than this, it has no labels


def check(config: AnalysisConfig, dataset: Dataset) -> None:
    """Raises a `UserError` where a file that `config` names is not there, is malformed, or fits none of the test images."""
    if config.attributes is not None:
        by_image(Path(config.attributes), dataset.split("test"))
    if config.human_labels is not None:
        human_labels(Path(config.human_labels), dataset.classes, len(dataset.split("test")))


def by_image(path: Path, split: Split) -> tuple[dict[str, list[str]], list[str]]:
    """The attributes in a CSV file, by name the value of each image of `split`, "" where the file has none for it.

    Also returns a line on each kind of what does not match.

    Images are named by their index, where every first cell is a number, or by the end of their path in the data set.

    Raises:
        UserError: it cannot be read, is malformed, or fits none of the images.
    """
    (header, *rows), names = _table(path), {}
    if len(header) < 2:
        raise UserError(
            f"{path} has no attribute: its first line needs a column for the image and one for each attribute"
        )
    twice = next((name for name, times in Counter(header).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns called {twice!r}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} cells, where the first line has {len(header)}")
        if row[0] in names:
            raise UserError(f"{path}, line {number}: the image {row[0][:LONGEST]!r} stands there a second time")
        names[row[0]] = row[1:]
    places = _places(list(names), split)
    if not any(place is not None for place in places.values()):
        raise UserError(
            f"{path} fits none of the {len(split):,} test images; its first column needs their indices, or file names such as "
            f"{split.key(0)!r}"
        )
    columns = {name: [""] * len(split) for name in header[1:]}
    first: dict[int, str] = {}  # to name it
    for name, place in places.items():
        if place is not None:
            if first.setdefault(place, name) != name:
                raise UserError(f"{path}: {first[place][:LONGEST]!r} and {name[:LONGEST]!r} name the same test image")
            for column, value in zip(columns.values(), names[name]):
                column[place] = value.strip()[:LONGEST]
    missing = [name for name, place in places.items() if place is None]
    said = [f"lines of no test image: {len(missing):,}, such as {missing[0][:LONGEST]!r}"] if missing else []
    without = len(split) - (len(places) - len(missing))
    return columns, said + ([f"test images without a line: {without:,}"] if without else [])


def _places(names: list[str], split: Split) -> dict[str, int | None]:
    """Which image of the split each name is of."""
    if all(name.isdecimal() for name in names):
        numbers = {name: int(name[-LONGEST:]) if name[:-LONGEST].strip("0") == "" else len(split) for name in names}
        return {name: number if number < len(split) else None for name, number in numbers.items()}
    ends: dict[str, int | None] = {}
    for index in range(len(split)):
        parts = split.key(index).split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            ends[end] = index if end not in ends or start == 0 else None  # a shared ending names no image
    return {name: ends.get(name.removeprefix("./")) for name in names}


def human_labels(path: Path, classes: list[str], images: int) -> NDArray[np.float64]:
    """The share of people who gave each test image each class, [images, classes]; zeros where nobody was asked.

    A CSV file may name the classes in its first line, in any order.

    Raises:
        UserError: the file cannot be read, is malformed, or is of another number of images or classes.
    """
    if path.suffix == ".npy":
        _check_file(path)
        try:
            with path.open("rb") as file:  # which an archive of arrays would keep open
                counts = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as an array: {error}") from None
        if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iufb" or counts.ndim != 2:
            raise UserError(f"{path} is no table of numbers, a row an image and a column a class")
        counts = counts.astype(np.float64)
    else:
        counts = _numbers(path, classes)
    if counts.shape != (images, len(classes)):
        raise UserError(
            f"{path} has {len(counts):,} rows of {counts.shape[1]}, and there are {images:,} test images of "
            f"{len(classes)} classes"
        )
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)).all(axis=1))
    if len(wrong):
        raise UserError(f"{path}: the row of image {wrong[0]} has a value that is no count or share")
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > SUM_OF_SHARES, counts / np.maximum(total, SUM_OF_SHARES), 0.0)


def _numbers(path: Path, classes: list[str]) -> NDArray[np.float64]:
    rows = _table(path)
    order = list(range(len(rows[0])))
    if sorted(cell.strip() for cell in rows[0]) == sorted(classes):
        order = [[cell.strip() for cell in rows[0]].index(name) for name in classes]
        rows = rows[1:]
    numbers = np.empty((len(rows), len(order)))
    for number, row in enumerate(rows):
        try:
            if len(row) != len(order):
                raise ValueError
            numbers[number] = [float(row[k]) for k in order]
        except ValueError:
            raise UserError(
                f"{path}, row {number + 1}: it needs {len(order)} numbers, one a class; a first line may name the classes"
            ) from None
    return numbers


def _table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, empty ones left out; at least one."""
    _check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not a file; analysis.attributes and analysis.human_labels take one")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB: that is no table of the test images")
