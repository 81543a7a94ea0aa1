"""RUN/metrics.jsonl, one JSON object a line: its one writer and its one reader."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from vgg_ddp.errors import UserError

Row = dict[str, Any]
_KEYS = {"step": int, "split": str, "scope": str}  # which every row has


class MetricsLog:
    """Appends to RUN/metrics.jsonl; each line is flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Row) -> None:
        """Append `row` as one line; what is not finite becomes null, since JSON knows no NaN.

        Raises:
            UserError: the disk is full.
        """
        try:
            self._file.write(json.dumps(_finite(row)) + "\n")
        except OSError as error:
            raise UserError(f"{self._file.name} cannot be written: {error.strerror}; free space there") from None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which `write` has told
            self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


class Rows(NamedTuple):
    """What was read of a metrics log.

    Attributes:
        rows: in the order of the file.
        cut_off: lines that cannot be read: left unfinished by a killed run, or damaged; the last may be about to be written.
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
            row = json.loads(line)
            if _KEYS.items() <= {key: type(value) for key, value in row.items()}.items():
                rows.append(row)
        except (ValueError, AttributeError):  # cut off by a kill, or damaged on the disk
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
