"""Runs stages one after the other, each in a process of its own with a time limit, and records what came of each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_session.stages import SECONDS, Stage
from benchmarks.measurement import command
from vgg_ddp.errors import UserError
from vgg_ddp.run.files import read_json, replace_file


def run(chosen: list[Stage], folder: Path, small: bool, limit: float) -> bool:
    """Run the stages without a result, in turn; whether all have one now. DIR/session.json says what came of each.

    Raises:
        UserError: the results there are of another size.
    """
    file, end = folder / "session.json", time.monotonic() + limit
    session: dict[str, Any] = read_json(file) or {"small": small, "stages": {}}
    if session["small"] != small:
        raise UserError(
            f"{folder} has results {'without' if small else 'with'} --small; choose another folder for --out"
        )
    for stage in chosen:
        if stage.result(folder).is_file():
            print(f"{stage.name:<16} is there already", flush=True)
            continue
        left = end - time.monotonic()
        if left <= 0:
            print(f"{stage.name:<16} not run: {limit:g} s are over", flush=True)
            continue
        print(f"{stage.name:<16} ...", end=" ", flush=True)
        start = time.monotonic()
        problem = attempt(stage, folder, min(SECONDS, left))
        seconds = time.monotonic() - start
        print(f"{seconds:5.0f} s  {problem or 'done'}", flush=True)
        session["machine"] = command.machine(torch.get_num_threads())
        session["stages"][stage.name] = {
            "state": "failed" if problem else "done",
            "problem": problem,
            "seconds": round(seconds, 1),
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": ["python", "-m", *stage.arguments(folder)],
        }
        replace_file(file, (command.as_json(session) + "\n").encode())
    return all(stage.result(folder).is_file() for stage in chosen)


def attempt(stage: Stage, folder: Path, limit: float) -> str:
    """Run a stage to its end, or to the limit; what went wrong, "" if nothing did."""
    log = stage.log(folder)
    # Forked from a process that has imported torch but not initialised CUDA, which would not survive a fork.
    process = multiprocessing.get_context("forkserver").Process(target=enter, args=(stage.arguments(folder), log))
    process.start()
    process.join(limit)
    problem = ""
    if process.exitcode is None:
        problem = f"stopped after {limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
    elif process.exitcode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        problem = f"failed ({process.exitcode}): {' '.join(last)}"
    if problem:
        stage.result(folder).unlink(missing_ok=True)
        return f"{problem}; see {log}"
    return "" if stage.result(folder).is_file() else f"wrote no rows; see {log}"


def enter(arguments: list[str], log: Path) -> None:
    """`python -m ARGUMENTS` in a process group of its own, with its output in a file."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
