"""Random faults: whatever happens to a run, it ends or can be continued, with the bits of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.chaos.conftest import Begin
from tests.chaos.launched import Launched
from tests.support.disks import disk_of
from tests.support.endless_writer import write_for_ever
from tests.support.processes import ranks_of
from tests.support.rank_processes import Launch, Ranks, Train, start, wait_until
from tests.support.run_folders import assert_undisturbed, metrics
from vgg_ddp.data.dataset import QUICKLY_READ, Dataset
from vgg_ddp.errors import EXIT_STOPPED, UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State

pytestmark = [pytest.mark.processes, pytest.mark.host]

WORDS = (
    "min_steps=24",
    "data.validation=0.2",
    "ema=0.9",
    "checkpoint.every_steps=4",
    "checkpoint.keep=2",
    "evaluate.checkpoint=last",
)


@pytest.fixture(scope="module")
def golden(train: Train) -> dict[int, Path]:
    """The undisturbed run, with one rank and with two."""
    return {size: train(f"golden {size}", *WORDS, size=size) for size in (1, 2)}


def ends_as(run: Path, golden: Path) -> str:
    """How the run differs from the undisturbed one; empty if it does not."""
    try:
        assert_undisturbed(run, golden)
    except (AssertionError, OSError) as error:
        return str(error)[:500] or type(error).__name__
    return ""


def steps(run: Path) -> int:
    return max((row["step"] for row in metrics(run)), default=0)


def wait_for_step(run: Path, step: int, launched: Launched) -> None:
    """Wait until `step` steps are logged, or the launch has ended."""
    while steps(run) < step and launched.process.poll() is None:
        time.sleep(0.01)


def wait_until_caught(number: signal.Signals, launched: Launched) -> None:
    """Wait until the signal has a handler: while the interpreter starts, it ends the process like any other."""
    status = Path(f"/proc/{launched.process.pid}/status")
    while launched.process.poll() is None:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> number - 1 & 1:
            return
        time.sleep(0.001)


EVERYWHERE = ("start", "fetch", "forward", "backward", "optimizer", "save", "validate", "evaluate")
ON_RANK_ZERO = ("write", "rename", "report")
CASES = [
    *((rank, phase, what) for what in ("KILL", "STOP", "TERM", "exception") for rank in (0, 1) for phase in EVERYWHERE),
    *((0, phase, what) for what in ("KILL", "STOP", "HUP", "exception") for phase in ON_RANK_ZERO),
    *((rank, phase, "link") for rank in (0, 1) for phase in ("backward", "validate", "evaluate")),
    *((rank, phase, "memory") for rank in (0, 1) for phase in ("forward", "backward")),
    *((rank, "forward", "nan") for rank in (0, 1)),
    (0, "write", "full"),
    (0, "rename", "full"),
]


def test_faults_by_phase(tries: Begin, golden: dict[int, Path], recipe: Path, runs: Path) -> None:
    """A fault in a phase of one of two ranks: the run recovers by itself, or ends as it should and can be continued."""
    tried = tries("a fault of a rank, by phase", 2, len(CASES))
    for rank, phase, what in tried.rng.sample(CASES, tried.count):
        fault = {"rank": rank, "phase": phase, "step": tried.rng.randrange(1, 20), "what": what}
        run = runs / f"{what} {phase} {rank}"
        code, said = Launched(recipe, run, 2, *WORDS, "timeout=20", fault=fault).end()
        for problem in problems_after(fault, code, said, run):
            tried.check(False, f"{fault}: {problem}: {code}\n{said[-1500:]}")
        if code:
            words = ["run.dir=" + str(run), *WORDS, "nproc=2", "resume=auto"]
            ranks = start("vgg_ddp.train", [str(recipe), *words], 2, runs / "output")
            tried.check(ranks.wait() == [0, 0], f"{fault}: {ranks.stderr[-1500:]}")
        tried.check(not ends_as(run, golden[2]), f"{fault}: {ends_as(run, golden[2])}\n{said[-500:]}")
        shutil.rmtree(run)


def problems_after(fault: dict[str, object], code: int, said: str, run: Path) -> Iterator[str]:
    """What is wrong with the end of a launch that had a fault."""
    what, phase = fault["what"], fault["phase"]
    lines = said.count("vgg-ddp: ")
    if what in ("KILL", "STOP", "link") or (what == "exception" and phase != "start"):
        if code != 0 or "all ranks start again from the newest checkpoint" not in said:
            yield "it has not started again"
        elif json.loads((run / "summary.json").read_text())["restarts"] != (phase != "report"):  # only the training's
            yield "it has restarted the wrong number of times"
    elif what in ("TERM", "HUP"):
        if code not in (EXIT_STOPPED, 128 + signal.Signals[f"SIG{what}"]) or lines != 1 or "Traceback" in said:
            yield "it has not stopped"
    elif what == "exception":
        if code != 1 or "before it had taken a step: not tried again" not in said:
            yield "it was tried again"
    elif code != 2 or lines != 1 or "Traceback" in said:
        yield "not one line"


def test_kills_of_a_rank(tries: Begin, golden: dict[int, Path], recipe: Path, runs: Path) -> None:
    """One kill per run, at any time from its start to its report: it recovers by itself."""
    tried = tries("a rank is killed, two ranks, one kill a run", 1, 100)
    for number in range(tried.count):
        run = runs / f"killed {number}"
        launched = Launched(recipe, run, 2, *WORDS)
        step, after = tried.rng.randrange(0, 25), tried.rng.uniform(0, 1.0)
        wait_for_step(run, step, launched)
        time.sleep(after)
        in_training = bool(ranks_of(launched.process.pid)) and steps(run) < 20
        if victims := launched.ranks():
            os.kill(tried.rng.choice(victims), signal.SIGKILL)
        code, said = launched.end()
        tried.check(not in_training or "all ranks start again" in said, f"after step {step}: none was lost")
        tried.check(
            code == 0 and not ends_as(run, golden[2]),
            f"after step {step}: {code}\n{ends_as(run, golden[2])}\n{said[-1500:]}",
        )
        shutil.rmtree(run)


def test_kills_in_one_run(tries: Begin, golden: dict[int, Path], train: Train, recipe: Path, runs: Path) -> None:
    """One after the other, each one checkpoint later than the one before."""
    tried = tries("a rank is killed, two ranks, all in one run", 1, 100)
    run = runs / "killed again and again"
    longer = [f"min_steps={4 * tried.count + 8}"] if tried.count > 4 else []
    expected = train("golden of many steps", *WORDS, *longer, size=2) if longer else golden[2]
    launched, kills = Launched(recipe, run, 2, *WORDS, *longer), 0
    for number in range(tried.count):
        wait_for_step(run, 4 * number + 6, launched)
        if victims := launched.ranks():
            victim = tried.rng.choice(victims)
            kills += steps(run) < 4 * tried.count + 4  # a training that has ended meanwhile need not start again
            os.kill(victim, signal.SIGKILL)
            while launched.said().count("all ranks start again") < kills and launched.process.poll() is None:
                time.sleep(0.01)
    code, said = launched.end()
    tried.check(said.count("all ranks start again") >= kills, f"{kills} kills\n{said[-2000:]}")
    tried.check(code == 0 and not ends_as(run, expected), f"{code}\n{ends_as(run, expected)}\n{said[-2000:]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stop_requests(number: signal.Signals, tries: Begin, golden: dict[int, Path], recipe: Path, runs: Path) -> None:
    """At any moment: it saves, or says that there was nothing to save, and can be continued to the same end."""
    tried = tries(f"{number.name} to the launch, of one rank or two", 1, 50)
    for attempt in range(tried.count):
        size, run = tried.rng.choice([1, 2]), runs / f"{number.name} {attempt}"
        launched = Launched(recipe, run, size, *WORDS)
        wait_until_caught(number, launched)
        wait_for_step(run, tried.rng.randrange(0, 25), launched)
        time.sleep(tried.rng.uniform(0, 0.5))
        launched.process.send_signal(number)
        in_training = steps(run) < 20
        code, said = launched.end()
        tried.check(code != 0 or not in_training, f"{number.name} went unheard\n{said[-1500:]}")
        tried.check(
            code in (0, EXIT_STOPPED, 128 + number) and (code == 0 or "vgg-ddp: " in said), f"{code}\n{said[-1500:]}"
        )
        tried.check("Traceback" not in said, said[-1500:])
        words = ["run.dir=" + str(run), *WORDS, f"nproc={size}", "resume=auto"]
        ranks = start("vgg_ddp.train", [str(recipe), *words], size, runs / "output")
        tried.check(ranks.wait() == [0] * size, ranks.stderr[-1500:])
        tried.check(not ends_as(run, golden[size]), f"{said[-500:]}\n{ends_as(run, golden[size])}")
        shutil.rmtree(run)


def test_kills_of_the_writer(tries: Begin, tmp_path: Path) -> None:
    """There is always a whole checkpoint, and never a partial one under a checkpoint's name."""
    tried = tries("killed inside the saving path", 0, 300)  # the suite has a few in tests/run/test_checkpoint.py
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        for attempt in range(tried.count):
            folder = Path(place, str(attempt))
            folder.mkdir()
            writer = Ranks(
                write_for_ever, (folder, tried.rng.choice([1, 2]), tried.rng.random() < 0.3), 1, tmp_path / "output"
            )
            wait_until(lambda writer=writer: "\n" in writer.stdout, writer)  # type: ignore[misc]
            time.sleep(tried.rng.uniform(0, 0.05))
            writer.send(signal.SIGKILL)
            writer.wait()
            tried.check(not problems_of(folder), f"{problems_of(folder)}")


def problems_of(folder: Path) -> list[str]:
    problems = []
    for place in checkpoint.find(folder):
        try:
            checkpoint.read(place)
        except UserError as error:
            problems.append(str(error))
    return problems if checkpoint.find(folder) else ["there is no checkpoint"]


def test_full_disks(tries: Begin, recipe: Path, tmp_path: Path) -> None:
    """Whatever the size of the disk: one line of error, and the checkpoints on it can be loaded."""
    tried = tries("a disk that fills up", 1, 30)
    for attempt in range(tried.count):
        size = f"{int(2 ** tried.rng.uniform(12, 26)) // 4096 * 4}k"
        with disk_of(size, tmp_path / f"disk {attempt}") as disk:
            ranks = start("vgg_ddp.train", [str(recipe), *WORDS, f"run.dir={disk}/run"], 1, tmp_path / "output")
            code, said = ranks.wait()[0], ranks.stderr
            lines = said.splitlines()
            tried.check(
                code == 0 or (code == 2 and len(lines) == 1 and "No space left" in said),
                f"{size}: {code} {said[-800:]}",
            )
            checkpoints = disk / "run/checkpoints"
            tried.check(not (checkpoint.find(checkpoints) and problems_of(checkpoints)), f"{size}: damaged")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One bit flipped, some bytes zeroed, or the end cut off."""
    place = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes(min(16, len(data) - place)) + data[place + 16 :]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def files_in(place: Path) -> Iterator[Path]:
    yield from sorted(path for path in place.rglob("*") if path.is_file())


def test_damage_of_checkpoints(tries: Begin, tmp_path: Path) -> None:
    tried = tries("a file of a checkpoint is damaged", 100, 500)
    weights = {"w": torch.arange(100.0)}
    folder = checkpoint.write(
        tmp_path, checkpoint.encode(weights, {"w/momentum_buffer": weights["w"]}, State(), weights), 1
    )
    undamaged = checkpoint.read(folder)
    for _ in range(tried.count):
        path = tried.rng.choice(list(files_in(folder)))
        data = path.read_bytes()
        changed = damaged(data, tried.rng)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            tried.check(checkpoint.read(folder) == undamaged or changed == data, f"{path.name} was taken as it is")
        path.write_bytes(data)


def test_damage_of_data(tries: Begin, few_digits: Path, tmp_path: Path) -> None:
    tried = tries("a file of a data set is damaged", 50, 500)
    for path in files_in(few_digits):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for _ in range(tried.count):
        path = tried.rng.choice(list(files_in(tmp_path)))
        data = path.read_bytes()
        changed = damaged(data, tried.rng)
        path.write_bytes(changed)
        try:
            Dataset(tmp_path).verify(at_most=QUICKLY_READ)
            same = path.suffix == ".json" and json.loads(changed) == json.loads(data)
            tried.check(same or changed == data, f"{path.name} was taken as it is")
        except UserError:
            pass
        path.write_bytes(data)


def test_nothing_grows(tries: Begin, launch: Launch, runs: Path) -> None:
    """In 2,000 steps and 50 epochs, with validations and checkpoints: memory, descriptors, threads, /dev/shm."""
    tried = tries("2,000 steps and more than 50 epochs", 0, 1)
    for number in range(tried.count):
        name = f"long {number}"
        words = ("min_steps=2000", "data.validation=0.2", "batch=4", "checkpoint.every_steps=100", "data.workers=1")
        ranks = launch(name, *words)
        seen = []
        for step in (500, 1950):
            while steps(runs / name) < step and ranks.alive():
                time.sleep(1)
            seen.append(held(ranks.processes[0].pid or 0))
        tried.check(ranks.wait() == [0], ranks.stderr)
        (early, late), allowed = seen, {"bytes": 2**25, "descriptors": 0, "threads": 0, "shared memory": 0}
        for what, more in allowed.items():
            tried.check(
                late[what] <= early[what] + more, f"{what}: {early[what]:,} after 500 steps, then {late[what]:,}"
            )


def held(process: int) -> dict[str, int]:
    """The resources that a process holds; for descriptors and threads the fewest in a while, since some come and go."""
    place = Path(f"/proc/{process}")
    looks = []
    for _ in range(50):
        time.sleep(0.02)
        looks.append((len(list((place / "fd").iterdir())), len(list((place / "task").iterdir()))))
    return {
        "bytes": int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": min(look[0] for look in looks),
        "threads": min(look[1] for look in looks),
        "shared memory": sum("/dev/shm" in line for line in (place / "maps").read_text().splitlines()),
    }
