"""What every benchmark has as a command."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from benchmarks.measurement import command


def test_a_result_s_folder_is_made_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "results" / "today" / "rows.json"
    assert command.result_file(str(path)) == path and path.parent.is_dir()


def test_a_result_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "rows.json"):
        with pytest.raises(ArgumentTypeError, match="cannot be written: "):
            command.result_file(str(path))


def test_only_what_measures_in_rounds_takes_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.parser("throughput", "x").parse_args(["--rounds", "2"]).rounds == 2
    with pytest.raises(SystemExit):
        command.parser("airbench", "x", in_rounds=False).parse_args(["--rounds", "2"])
    assert "unrecognized arguments: --rounds 2" in capsys.readouterr().err
