"""What kills cost a training, and what fault tolerance costs an undisturbed one: with `--chaos whole` only.

Both are measurements, and need an otherwise idle machine.
"""

from __future__ import annotations

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
    """The time of the steps that the run has kept, with validation and saving; repeated steps count once."""
    return float(metrics(run)[-1]["seconds"]) if metrics(run) else 0.0


def test_goodput(tries: Begin, digits: Path, runs: Path) -> None:
    """A rank is killed every minute for 15 minutes: at least 95 % of that time goes into steps that are kept."""
    tried = tries("a rank is killed every minute: goodput", 0, 15)
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


def test_cost_of_being_ready(tries: Begin, digits: Path, runs: Path) -> None:
    """A fault-tolerant training of one rank against one that is not: at most 2 % more of a core's time.

    Both run at once on the same core, which switches between them every few milliseconds, so that both see the same
    machine: on two cores their times differ by several per cent from pair to pair. Such a training has only this core,
    which is never idle, so saving in the background takes its time too.
    """
    tried = tries("ready for faults, without any: cost", 0, 10)
    cores = sorted(os.sched_getaffinity(0))[:2]
    ratios: list[float] = []
    while len(ratios) < tried.count:
        pairs = [
            [
                begin(digits, runs / f"cost {len(ratios)} {core} {kind}", 1, "epochs=6", *words, core=core)
                for kind, words in (("ready", READY), ("unready", UNREADY))
            ]
            for core in cores[: tried.count - len(ratios)]
        ]
        ratios += [ready / unready for ready, unready in ([used_by(training) for training in pair] for pair in pairs)]
    if ratios:
        cost = statistics.median(ratios) - 1
        pairs_told = ", ".join(f"{ratio - 1:.1%}" for ratio in sorted(ratios))
        tried.figure = f"median {cost:.2%} of {pairs_told}"
        tried.check(cost <= 0.02, pairs_told)


def used_by(training: Launched) -> float:
    """The CPU seconds that a training and all of its processes have used, once they have ended."""
    _, status, usage = os.wait4(training.process.pid, 0)
    training.process.returncode = os.waitstatus_to_exitcode(status)
    code, said = training.end()
    assert code == 0, said
    return usage.ru_utime + usage.ru_stime
