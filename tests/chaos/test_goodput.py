"""What kills cost a training, and what being ready for them costs one that nobody kills: with `--chaos whole` alone.

Both measure, and want a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Begin
from tests.chaos.launched import ROOT, Launched
from tests.support.processes import ranks_of
from tests.support.run_folders import metrics
from vgg_ddp.errors import EXIT_STOPPED

pytestmark = [pytest.mark.processes, pytest.mark.host]

EVERY = 60.0  # seconds from one kill to the next
READY = ("checkpoint.every_steps=10",)  # a checkpoint every other second; restarts=3 is the default
UNREADY = ("restarts=0", "checkpoint.every_epochs=1000")


def begin(digits: Path, run: Path, size: int, *words: str, core: int | None = None) -> Launched:
    """The quickstart's recipe on the digits."""
    words += (f"data.source={digits}", "threads=1", "device=cpu", "analysis.budget=none", "data.validation=0")
    return Launched(ROOT / "configs/quickstart.yaml", run, size, *words, core=core)


def seconds(run: Path) -> float:
    """How long the steps took, with validation and saving, that the run has and keeps: those that were made again once."""
    return float(metrics(run)[-1]["seconds"]) if metrics(run) else 0.0


def test_goodput(tries: Begin, digits: Path, runs: Path) -> None:
    """A rank is killed every minute for 15 minutes: at least 95 % of that time goes into steps that stay."""
    tried = tries("a rank is killed every minute: goodput", 0, 15)
    if not tried.count:
        return
    run = runs / "goodput"
    training = begin(digits, run, 2, "epochs=100000", "log.every_steps=1", *READY)
    while not (before := seconds(run)):
        assert training.process.poll() is None, training.end()
        time.sleep(0.01)
    start = time.monotonic()
    for _ in range(tried.count):
        time.sleep(EVERY)
        os.kill(tried.rng.choice(ranks_of(training.process.pid)), signal.SIGKILL)
    time.sleep(EVERY)
    kept, whole = seconds(run) - before, time.monotonic() - start
    training.process.terminate()
    code, said = training.end()
    tried.figure = f"{kept / whole:.2%} of {whole:.0f} s, {(whole - kept) / tried.count:.2f} s lost by each"
    tried.check(code == EXIT_STOPPED and said.count("all ranks start again") == tried.count, said[-2000:])
    tried.check(kept >= 0.95 * whole, tried.figure)


def test_cost_without_faults(tries: Begin, digits: Path, runs: Path) -> None:
    """A training of one rank that is ready for faults beside one that is not: at most 2 % longer.

    Both at once, each with all of its processes on a core of its own, so that what else the machine does slows both; the
    cores are exchanged from pair to pair.
    """
    tried = tries("ready for faults, without any: cost", 0, 10)
    cores = sorted(os.sched_getaffinity(0))[:2]
    ratios = []
    for number in range(tried.count):
        started = {}
        for core, kind, words in zip(cores[:: 1 if number % 2 else -1], ("ready", "unready"), (READY, UNREADY)):
            run = runs / f"cost {number} {kind}"
            started[run] = begin(digits, run, 1, "epochs=6", *words, core=core)
        for training in started.values():
            code, said = training.end()
            assert code == 0, said
        ready, unready = (json.loads((run / "summary.json").read_text())["train_seconds"] for run in started)
        ratios.append(ready / unready)
    if ratios:
        cost = statistics.median(ratios) - 1
        pairs = ", ".join(f"{ratio - 1:.1%}" for ratio in sorted(ratios))
        tried.figure = f"median {cost:.2%} of {pairs}"
        tried.check(cost <= 0.02, pairs)
