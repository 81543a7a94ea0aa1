"""Each item of the saved state is left out in turn: at least one test must fail, or the suite would prove nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.conftest import Begin

pytestmark = [pytest.mark.processes, pytest.mark.host]

ROOT = Path(__file__).resolve().parents[2]
RESUME = "tests/training/test_resume.py"
CHECKPOINT = "tests/run/test_checkpoint.py"
# What is left out: the file, the text, its replacement, and the tests that must notice.
STATE = ("vgg_ddp/run/checkpoint.py", "msgspec.json.encode(state)")
MUTATIONS = {
    "momentum": ("vgg_ddp/engines/ddp.py", "if isinstance(value, Tensor):", "if False:", RESUME),
    "loss scale": (
        "vgg_ddp/engines/ddp.py",
        '"scaler": self._scaler.state_dict()',
        '"scaler": torch.amp.GradScaler("cpu", enabled=self._scaler.is_enabled()).state_dict()',
        "tests/engines/test_ddp.py",
    ),
    "batch norm's buffers": (
        "vgg_ddp/engines/head.py",
        "return self.network.state_dict()",
        "return self.network.state_dict() | {n: b * 0 for n, b in self.network.named_buffers()}",
        RESUME,
    ),
    "averaged weights": ("vgg_ddp/training/loading.py", "if job.config.ema:", "if False:", RESUME),
    "position": (*STATE, "msgspec.json.encode(msgspec.structs.replace(state, step_in_epoch=0))", RESUME),
    "totals": (*STATE, "msgspec.json.encode(msgspec.structs.replace(state, totals=[0.0, 0.0, 0.0]))", RESUME),
    "best": (*STATE, "msgspec.json.encode(msgspec.structs.replace(state, best_accuracy=-1.0))", RESUME),
    "the log's end": ("vgg_ddp/training/loading.py", "job.run.keep_metrics_until(state.step,", "(lambda *a, **k: 0)(", RESUME),
    "hash": ("vgg_ddp/run/checkpoint.py", "!= hashes[name]", "is None", CHECKPOINT),
    "fsync": ("vgg_ddp/run/files.py", "os.fsync(file.fileno())", "pass", CHECKPOINT),
    "fsync of the folder": ("vgg_ddp/run/files.py", "os.fsync(descriptor)", "pass", CHECKPOINT),
    "renaming": ("vgg_ddp/run/checkpoint.py", 'f".writing-{final.name}"', "final.name", CHECKPOINT),
}  # fmt: skip


def without(file: str, text: str, other: str) -> str:
    """The code of a file with its only `text` replaced by `other`."""
    code = (ROOT / file).read_text()
    assert code.count(text) == 1, f"{file} does not have exactly one {text}"
    return code.replace(text, other)


@pytest.mark.parametrize("name", MUTATIONS)
def test_there_is_each_item_to_leave_out(name: str) -> None:
    file, text, other, tests = MUTATIONS[name]
    compile(without(file, text, other), file, "exec")
    assert (ROOT / tests).is_file()


def test_each_item_of_the_state_is_missed(tries: Begin, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In a copy of the code, whose own tests run in a separate process."""
    tried = tries("an item of the state is left out", 0, len(MUTATIONS))
    for name, (file, text, other, tests) in list(MUTATIONS.items())[: tried.count]:
        copy = tmp_path / name
        for folder in ("vgg_ddp", "tests", "configs", "benchmarks", "launch"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / file).write_text(without(file, text, other))
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", tests]
        ended = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
        missed = ended.returncode == pytest.ExitCode.TESTS_FAILED
        tried.check(missed, f"{name} is left out, and no test of {tests} fails:\n{ended.stdout[-1500:]}")
        shutil.rmtree(copy)
