"""The metrics log: every whole row comes back, once, however the file was cut and wherever reading goes on."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from vgg_ddp.run.metrics_log import MetricsLog, last_written, read_metrics, read_rows

ROWS = [{"split": "train", "scope": "steps", "step": step, "loss": 1 / step, "name": "é\u2028"} for step in range(1, 5)]


def test_a_log_that_grows_is_read_on_from_where_reading_ended(tmp_path: Path) -> None:
    """Cut at any byte, as a reader finds it while a row is written: each row is read once, whole, and in order."""
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == ([], 0, 0)
    with MetricsLog(path) as log:
        for row in ROWS:
            log.write(row)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        first = read_rows(path)
        assert first.cut_off == (not data[:cut].endswith(b"\n") and cut > 0)
        path.write_bytes(data)
        second = read_rows(path, first.end)
        assert first.rows + second.rows == ROWS
        assert second.end == len(data)


def test_a_row_that_follows_a_cut_one_is_lost_with_it_alone(tmp_path: Path) -> None:
    """A run killed before its first checkpoint starts over, and appends to the cut line that it left."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    for cut in range(1, len(lines[1])):
        path.write_bytes(lines[0] + lines[1][:cut] + lines[2] + lines[3])
        assert read_rows(path)[:2] == ([ROWS[0], ROWS[3]], 1)
        assert read_metrics(path) == [ROWS[0], ROWS[3]]


def test_of_rows_written_twice_the_later_count() -> None:
    again = {**ROWS[1], "loss": 7.0}
    other = {**ROWS[1], "scope": "epoch"}
    assert last_written([*ROWS, again, other]) == [ROWS[0], again, other, *ROWS[2:]]


def test_what_json_does_not_know_becomes_null(tmp_path: Path) -> None:
    row = {"step": 1, "split": "train", "scope": "steps", "loss": math.nan, "ranks": {"data_wait": [math.inf, 1.0]}}
    with MetricsLog(tmp_path / "log") as log:
        log.write(row)
    (found,) = read_metrics(tmp_path / "log")
    assert found == {**row, "loss": None, "ranks": {"data_wait": [None, 1.0]}}


def test_a_flipped_bit_costs_its_own_line_alone(tmp_path: Path) -> None:
    path, rng = tmp_path / "log", random.Random(0)
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write({"step": step, "split": "train", "scope": "steps", "loss": 1.0})
    data = path.read_bytes()
    third = data.splitlines(keepends=True)[2]
    for place in range(data.index(third), data.index(third) + len(third) - 1):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        steps = [row["step"] for row in read_metrics(path) if "step" in row]
        assert [step for step in steps if step in (1, 2, 4, 5)] == [1, 2, 4, 5]
