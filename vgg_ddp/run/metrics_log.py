"""RUN/metrics.jsonl, one JSON object a line: its one writer and its one reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class MetricsLog:
    """Appends to RUN/metrics.jsonl; each line is flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Row) -> None:
        """Append `row` as one line."""
        self._file.write(json.dumps(row) + "\n")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Rows(NamedTuple):
    """What was read of a metrics log.

    Attributes:
        rows: in the order of the file.
        cut_off: how many lines a killed run left unfinished; the last one may also be about to be written.
        end: the byte after the last line that ends in a newline, where reading can go on.
    """

    rows: list[Row]
    cut_off: int
    end: int


def read_rows(path: Path, start: int = 0) -> Rows:
    """The lines of a metrics log from byte `start` on; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            *lines, unfinished = file.read().split(b"\n")
    except FileNotFoundError:
        return Rows([], 0, start)
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a run without a checkpoint was killed and started again: its next row follows the cut one
            continue
    cut_off = len(lines) - len(rows) + bool(unfinished)
    return Rows(rows, cut_off, start + sum(len(line) + 1 for line in lines))


def read_metrics(path: Path) -> list[Row]:
    """Every whole row of a metrics log, in the order of the file."""
    return read_rows(path).rows


def last_written(rows: list[Row]) -> list[Row]:
    """The rows in the order of their steps; of those that a resumed run wrote again, the later ones."""
    latest = {(row["split"], row["scope"], row["step"]): row for row in rows}
    return sorted(latest.values(), key=lambda row: row["step"])
