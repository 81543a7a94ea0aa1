"""The options that all benchmark commands share, and their errors."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import loaders, tracking
from benchmarks.communication import __main__ as communication
from benchmarks.measurement import command

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many"])
def test_what_counts_is_one_at_least(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parser("throughput", "x").parse_args([f"--rounds={text}"])
    assert ended.value.code == 2
    assert f"argument --rounds: {text} is no whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (communication.main, ["--links", "500"], "argument --links: invalid choice: '500'"),
        (tracking.main, ["--steps", "10"], "--steps 10: give more than 10, which are warm-up"),
        (loaders.main, ["--data", "digits", "--memory-batches", "9"], "--memory-batches 9: give 10 or more"),
        (
            loaders.main,
            ["--data", "digits", "--photos", "0", "--batch", "8", "--only", "dali fils"],
            "nothing could be measured, of dali fils",
        ),
    ],
)
def test_options_that_nothing_can_be_measured_with_are_one_line(
    main: Callable[[], None],
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as ended:
        command.run(main)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_result_names_no_path_of_the_machine_that_it_is_from(path: Path) -> None:
    assert re.findall(r'"(?:[^"]*[ =])?/[^"]*"', path.read_text()) == []
