"""The session for a machine with a GPU, rehearsed in full on the CPU."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_session.__main__ import main
from benchmarks.measurement import command

pytestmark = [pytest.mark.slow, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    "environment",
    "tests",
    "step-32",
    "arithmetic-32",
    "profile-32",
    "compile-32",
    "loaders",
    "peers",
    "accuracy",
]


def session(folder: Path, *words: object) -> tuple[int, list[str]]:
    """The exit code and the output lines of a session; its stages are forked, like the tests' other commands."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        patch.setattr(sys, "argv", ["gpu_session", "--out", str(folder), *map(str, words)])
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            command.run(main)
    return ended.value.code or 0, output.getvalue().splitlines()  # type: ignore[return-value]


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{stage}.json").read_text())["rows"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    folder = tmp_path_factory.mktemp("session")
    code, lines = session(folder, "--small", "--data", digits)
    assert code == 0, "\n".join(lines)
    return folder


def test_every_stage_has_a_result(whole: Path) -> None:
    kept = json.loads((whole / "session.json").read_text())
    assert list(kept["stages"]) == STAGES
    assert {stage["state"] for stage in kept["stages"].values()} == {"done"}
    assert {"date", "devices", "torch"} <= set(kept["machine"])
    for stage in STAGES:
        written = json.loads((whole / f"{stage}.json").read_text())
        assert written["rows"] and {"date", "devices", "torch"} <= set(written["machine"])


def test_the_bodies_of_the_gpu_s_tests_pass_on_the_cpu(whole: Path) -> None:
    outcomes = rows(whole, "tests")
    assert [row for row in outcomes if row["outcome"] == "failed"] == []
    passed = {row["name"].partition("[")[0] for row in outcomes if row["outcome"] == "passed"}
    assert len(passed) >= 7


def test_a_step_is_predicted_from_what_it_computes_and_moves(whole: Path) -> None:
    (cell,) = (row for row in rows(whole, "step-32") if "network" in row)
    predicted = cell["predicted"]
    assert predicted["flop"] == cell["batch"] * cell["flop_per_image"]
    weights = 9_229_898
    assert predicted["bytes"] > 4 * weights * 8  # weights read twice, gradients written, then the update
    (product,) = (row["flop_per_second"] for row in rows(whole, "step-32") if "flop_per_second" in row)
    assert predicted["seconds"] > predicted["flop"] / product / 10  # predicted from rates measured just before
    log = (whole / "step-32.log").read_text()
    assert log.index("predicted:") < log.index("images/s")


def test_what_cannot_be_had_is_a_row_with_the_reason(whole: Path) -> None:
    left_out = {row["name"]: row["left_out"] for row in rows(whole, "compile-32") if "left_out" in row}
    assert list(left_out) == ["vgg11 32px 2 fp32 channels_last graph"]
    assert "needs an NVIDIA GPU" in left_out["vgg11 32px 2 fp32 channels_last graph"]


def test_the_table_has_all_stages_and_the_longest_kernels(whole: Path) -> None:
    lines = (whole / "table.md").read_text().splitlines()
    with_rows = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    assert set(STAGES) - {"accuracy"} <= with_rows
    kernels = json.loads((whole / "profile-32" / "kernels.json").read_text())
    assert len(kernels) == 10
    seconds = [kernel["seconds"] for kernel in kernels]
    assert seconds == sorted(seconds, reverse=True) and 0.5 < sum(kernel["share"] for kernel in kernels) <= 1
    assert any(line.startswith(f"| `{kernels[0]['name']}` |") for line in lines)


def test_only_what_has_no_result_is_run_again(whole: Path, tmp_path: Path) -> None:
    """A stage that fails is reported with its last line, and the next one runs."""
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    for stage in ("environment", "accuracy"):
        (again / f"{stage}.json").unlink()
    code, lines = session(
        again, "--small", "--data", tmp_path / "nothing", "--stages", "accuracy", "environment", "peers"
    )
    told = {line.split()[0]: line for line in lines if line and not line.startswith("|")}
    assert code == 1
    assert "failed (2): error: " in told["accuracy"] and "accuracy.log" in told["accuracy"]
    assert told["environment"].endswith("done")
    assert told["peers"].endswith("is there already")
    kept = json.loads((again / "session.json").read_text())["stages"]
    assert (kept["accuracy"]["state"], kept["environment"]["state"]) == ("failed", "done")


def test_a_limit_stops_the_stage_and_leaves_the_others(tmp_path: Path) -> None:
    code, lines = session(tmp_path, "--small", "--limit", 0.3, "--stages", "tests", "loaders")
    assert code == 1
    assert "stopped after 0 s" in lines[0] and "not run: 0.3 s are over" in lines[1]
    assert not (tmp_path / "tests.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no NVIDIA GPU here; --small rehearses the session on a CPU"),
        (["--small", "--stages", "step"], "there is no stage step; there are environment, tests, "),
    ],
)
def test_mistakes_get_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    code, (line,) = session(tmp_path, *words)
    assert code == 2
    assert line.startswith(f"error: {said}")
