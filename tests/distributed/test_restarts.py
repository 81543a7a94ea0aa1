"""Ranks that are killed or hang are restarted automatically, and end with the bits of an undisturbed run.

Meanwhile, nobody can connect from outside.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import pickle
import re
import signal
from pathlib import Path

from torch.distributed import TCPStore

from tests.support.processes import assert_gone, descendants, ranks_of
from tests.support.rank_processes import Ranks, Train, wait_until
from tests.support.run_folders import assert_undisturbed, metrics
from vgg_ddp import cli

WORDS = ("min_steps=100", "checkpoint.every_steps=4", "data.workers=1", "model.batch_norm=false")


def test_a_rank_that_is_killed_and_one_that_hangs(recipe: Path, runs: Path, train: Train, tmp_path: Path) -> None:
    """Also: nothing listens where another host could connect, and a pickle put into the store is not executed."""
    run = runs / "disturbed"
    words = ["train", str(recipe), f"run.dir={run}", "nproc=2", *WORDS, "timeout=10"]
    launched = Ranks(cli.main, (words,), 1, runs / "disturbed output")
    supervisor = launched.processes[0].pid
    wait_until(lambda: len(metrics(run)) >= 6, launched)
    processes = descendants(supervisor)
    assert len(processes) >= 5  # the server that ranks are forked from, two ranks, a worker each
    listening = [place for process in (supervisor, *processes) for place in listens(process)]
    assert listening and {address for address, _ in listening} == {"127.0.0.1"}
    (store,) = [port for _, port in listens(supervisor)]
    assert "agents/ranks 0" in plant(store, tmp_path / "canary")
    ranks = ranks_of(supervisor)
    os.kill(ranks[0], signal.SIGKILL)
    wait_until_further(run, supervisor, ranks, launched)
    processes += descendants(supervisor)
    _, rank_one = ranks_of(supervisor)
    os.kill(rank_one, signal.SIGSTOP)
    assert launched.wait() == [0], launched.stderr
    assert not (tmp_path / "canary").exists()
    assert_gone(processes)
    first, second = launched.stderr.splitlines()
    assert first.startswith("vgg-ddp: rank 0 was killed by SIGKILL ")
    assert second.startswith("vgg-ddp: rank 1 gave no sign for 10 s ")
    again = "; all ranks start again from the newest checkpoint (restart 1 of 3)"  # both 1: progress in between
    assert first.endswith(again) and second.endswith(again)
    assert_undisturbed(run, train("undisturbed", *WORDS, size=2))
    for file in ("summary.json", "environment.json"):
        assert json.loads((run / file).read_text())["restarts"] == 2


def test_a_rank_without_others(recipe: Path, runs: Path, train: Train) -> None:
    run = runs / "alone"
    words = ["train", str(recipe), f"run.dir={run}", "nproc=1", *WORDS, "timeout=10"]
    launched = Ranks(cli.main, (words,), 1, runs / "alone output")
    supervisor = launched.processes[0].pid
    wait_until(lambda: furthest(run) >= 6, launched)
    processes = descendants(supervisor)
    assert not any(listens(process) for process in (supervisor, *processes))
    ranks = ranks_of(supervisor)
    os.kill(ranks[0], signal.SIGKILL)
    wait_until_further(run, supervisor, ranks, launched)
    processes += descendants(supervisor)
    (second,) = ranks_of(supervisor)
    os.kill(second, signal.SIGSTOP)
    assert launched.wait() == [0], launched.stderr
    assert_gone(processes)
    killed, hung = launched.stderr.splitlines()
    assert killed.startswith("vgg-ddp: rank 0 was killed by SIGKILL ")
    assert hung.startswith("vgg-ddp: rank 0 gave no sign for 10 s ")
    again = "; it starts again from the newest checkpoint (restart 1 of 3)"
    assert killed.endswith(again) and hung.endswith(again)
    assert_undisturbed(run, train("undisturbed alone", *WORDS))


def wait_until_further(run: Path, supervisor: int, ranks: list[int], launched: Ranks) -> None:
    """Wait until new ranks have replaced all of `ranks`, and have got further than those had.

    A step's row is written before its rank reports the step, and a rank may be a step behind the others: hence the row
    after the next one.
    """

    def further() -> bool:
        others, told = ranks_of(supervisor), re.search(r"step (\d+)", launched.stderr)
        there = len(others) == len(ranks) and set(others).isdisjoint(ranks)
        return there and told is not None and furthest(run) > int(told[1]) + 1

    wait_until(further, launched)


def furthest(run: Path) -> int:
    return max((row["step"] for row in metrics(run)), default=0)


def listens(pid: int) -> list[tuple[str, int]]:
    """The addresses at which a process listens for TCP connections."""
    links, found = [], []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in between
            links.append(os.readlink(file))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    for line in [row.split() for table in tables for row in table]:
        if line[3] == "0A" and f"socket:[{line[9]}]" in links:
            address, port = line[1].split(":")
            packed = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
            found.append((str(ipaddress.ip_address(packed)), int(port, 16)))
    return found


def plant(port: int, canary: Path) -> set[str]:
    """Put a pickle that creates `canary` wherever torchrun's rendezvous would read one; return the prefixes."""

    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    store = TCPStore("127.0.0.1", port, is_master=False)
    prefixes = {"/".join(key.split("/")[1:3]) for key in store.list_keys()}
    for name in ("ranks", "vgg_ddp", "none", *prefixes):
        store.set(f"torch.rendezvous.{name}", base64.b64encode(pickle.dumps(Canary())))
        store.set(f"launch/torch.rendezvous.{name}", base64.b64encode(pickle.dumps(Canary())))
        store.set(f"launch/{name}/canary", pickle.dumps(Canary()))
    return prefixes
