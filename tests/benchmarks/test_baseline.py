"""The verdict on simulated runs whose true speed is known, and on result files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measurement import baseline, rounds
from vgg_ddp.errors import UserError

TRIALS = 200


def simulated(
    generator: np.random.Generator, speed: float = 1.0, between: float = 0.045, drift: float = 0.15, rounds: int = 7
) -> dict[str, Any]:
    """A run on a machine whose speed varies between runs, and from round to round."""
    whole = generator.normal(0, drift) + generator.normal(0, 0.03, rounds)  # affects the reference as well
    own = generator.normal(0, between) + generator.normal(0, 0.02, rounds)
    rates = 1000 * speed * np.exp(whole + own)
    reference = 1e12 * np.exp(whole + generator.normal(0, 0.005, rounds))
    return {"name": "step", "all": rates.tolist(), "reference": reference.tolist()}


def words(speed: float, baselines: int, **world: float) -> Counter[str]:
    generator = np.random.default_rng(0)
    return Counter(
        baseline.verdict(
            simulated(generator, speed, **world), [simulated(generator, **world) for _ in range(baselines)]
        ).word
        for _ in range(TRIALS)
    )


@pytest.mark.seconds
@pytest.mark.parametrize(("baselines", "between"), [(1, 0.0), (1, 0.045), (2, 0.045), (3, 0.12), (5, 0.12)])
def test_the_same_version_is_noise_nineteen_times_of_twenty(baselines: int, between: float) -> None:
    # A rate of exactly 0.95 is the aim with three runs and more; two standard deviations of the count are allowed for.
    least = 0.95 - 2 * (0.95 * 0.05 / TRIALS) ** 0.5
    assert words(1.0, baselines, between=between)["noise"] / TRIALS >= least


@pytest.mark.seconds
@pytest.mark.parametrize(("speed", "word"), [(1.3, "faster"), (1 / 1.3, "slower")])
def test_a_real_difference_is_found_in_nine_of_ten(speed: float, word: str) -> None:
    assert words(speed, 1)[word] / TRIALS >= 0.9
    assert words(speed, 5)[word] / TRIALS >= 0.9


def test_a_quieter_machine_shows_smaller_differences() -> None:
    generator = np.random.default_rng(0)
    now, before = simulated(generator, 1.06, between=0.005), simulated(generator, between=0.005)
    assert baseline.verdict(now, [before]).word == "noise"
    assert baseline.verdict(now, [before], between_runs=0.005).word == "faster"


def test_rounds_that_hang_together_tell_less() -> None:
    apart = [1.0, 2.0] * 8
    together = [1.0] * 8 + [2.0] * 8
    assert baseline.standard_error(together) > 2 * baseline.standard_error(apart)


def test_without_the_reference_a_slow_machine_looks_like_a_slow_version() -> None:
    generator = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for _ in range(TRIALS):
        now, before = simulated(generator), simulated(generator)
        del now["reference"]
        found[baseline.verdict(now, [before]).word] += 1
    assert found["noise"] / TRIALS < 0.6


def test_seconds_are_better_when_fewer() -> None:
    before = {"name": "step", "higher_is_better": False, "all": [1.00, 1.01, 0.99, 1.0, 1.0]}
    now = {**before, "all": [value / 2 for value in before["all"]]}
    found = baseline.verdict(now, [before])
    assert found.word == "faster"
    assert found.change == pytest.approx(1.0)  # twice as fast
    assert not found.reference


@pytest.mark.parametrize("unit", baseline.SHARES)
def test_a_share_is_not_divided_by_the_machine_s_speed(unit: str) -> None:
    before = {"name": "step", **rounds.summary([0.1, 0.1, 0.1], unit, [1.0] * 3)}
    found = baseline.verdict({**before, "reference": [2.0] * 3}, [before])
    assert (found.word, found.change, found.reference) == ("noise", 0.0, None)
    assert len(baseline.table([found]).splitlines()) == 2  # no line about a reference


def options(*files: Path) -> Namespace:
    parser = ArgumentParser()
    baseline.add_options(parser)
    return parser.parse_args(["--baseline", *map(str, files)])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"machine": {}, "command": "", "rows": rows}))
    return path


def test_files_are_compared_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "a", **rounds.summary([100.0, 101.0, 99.0, 100.5, 99.5], reference=[1.0] * 5)}
    other = {**row, "name": "b"}
    stored = write(tmp_path / "stored.json", [row, other])
    half = {**row, "all": [value / 2 for value in row["all"]]}
    found = baseline.report([row, {**half, "name": "b"}, {**row, "name": "new"}], options(stored))
    assert [(v["name"], v["word"]) for v in found] == [("a", "noise"), ("b", "slower")]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["noise", "slower"]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', '{"rows": [{"all": [1]}]}'])
def test_what_is_no_result_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "stored.json").write_text(text)
    with pytest.raises(UserError, match=r"stored\.json"):
        baseline.verdicts([{"name": "a", "all": [1.0, 2.0]}], [tmp_path / "stored.json"])


def test_a_baseline_of_other_rows_is_refused(tmp_path: Path) -> None:
    stored = write(tmp_path / "stored.json", [{"name": "b", "all": [1.0, 2.0]}])
    with pytest.raises(UserError, match="none of this run's rows"):
        baseline.verdicts([{"name": "a", "all": [1.0, 2.0]}], [stored])


@pytest.mark.parametrize("key", ["network", "threads", "target", "world_size"])
def test_rows_of_one_name_are_compared_with_the_same_settings_alone(key: str, tmp_path: Path) -> None:
    row = {"name": "weak, 2 ranks", "all": [1.0, 2.0], "version": "1"}
    stored = write(tmp_path / "stored.json", [{**row, key: 11}])
    for alike in (row, {**row, key: 11, "version": "2"}):  # a file may have been written before the key existed
        assert len(baseline.verdicts([alike], [stored])) == 1
    with pytest.raises(UserError, match=rf"stored\.json: 'weak, 2 ranks' .* {key}=11, and this run has {key}=16"):
        baseline.verdicts([{**row, key: 16}], [stored])
