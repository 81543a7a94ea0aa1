"""How many ranks a host starts, and what their exit codes become."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import pickle
import signal
import textwrap
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.support.rank_processes import Ranks, wait_until
from tests.support.run_folders import metrics
from vgg_ddp import cli
from vgg_ddp.config import Config
from vgg_ddp.distributed import launcher

pytestmark = pytest.mark.processes


def test_as_many_ranks_as_asked_for() -> None:
    assert launcher.ranks_of_this_host(Config(nproc=3)) == 3


@pytest.mark.parametrize(("codes", "code"), [([2, 1], 2), ([75, 75], 75), ([1, -9], 1)])
def test_our_exit_codes_pass_through(tmp_path: Path, codes: list[int], code: int) -> None:
    """Real ranks that end with the given codes (negative: by that signal), each after the one before it."""
    (tmp_path / "ending.py").write_text(
        textwrap.dedent(f"""
        import os, pathlib, sys, time
        rank = int(os.environ["RANK"])
        code = {codes}[rank]

        def has_ended(rank):
            if not os.path.lexists(f"pid {{rank}}"):
                return False
            try:
                stat = pathlib.Path("/proc", os.readlink(f"pid {{rank}}"), "stat").read_text()
            except FileNotFoundError:
                return True
            return stat.rsplit(")", 1)[1].split()[0] == "Z"

        if __name__ == "__main__":
            os.symlink(str(os.getpid()), f"pid {{rank}}")
            while rank and not has_ended(rank - 1):
                time.sleep(0.01)
            os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
        """)
    )
    launched = Ranks(_launch_in, (tmp_path, "ending", len(codes)), 1, tmp_path / "output")
    assert launched.wait() == [code], launched.stderr


def test_no_rank_outlives_a_launcher_that_is_killed_at_once(tmp_path: Path) -> None:
    """Before the ranks have imported anything of theirs."""
    (tmp_path / "waiting.py").write_text("import time; time.sleep(3600)")
    launched = Ranks(_launch_in, (tmp_path, "waiting", 2), 1, tmp_path / "output")
    wait_until(lambda: len(descendants(launched.processes[0].pid)) >= 2, launched)
    ranks = descendants(launched.processes[0].pid)
    launched.send(signal.SIGKILL)
    launched.wait()
    assert_gone(ranks)


def _launch_in(folder: Path, module: str, ranks: int) -> int:
    os.chdir(folder)
    os.environ["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    return launcher.start(module, [], ranks)


def test_a_training_on_one_host_is_alone_with_itself(recipe: Path, runs: Path, tmp_path: Path) -> None:
    """Nothing of it listens where another host could connect; what is put into its store is not run; it ends as one."""
    words = ["train", str(recipe), f"run.dir={runs / 'alone'}", "nproc=2", "min_steps=1000000", "data.workers=1"]
    launched = Ranks(cli.main, (words,), 1, runs / "alone output")
    wait_until(lambda: len(metrics(runs / "alone")) >= 1, launched)
    processes = [launched.processes[0].pid, *descendants(launched.processes[0].pid)]
    assert len(processes) >= 5  # two ranks, a worker each
    listening = {address for pid in processes for address in listens(pid)}
    assert listening and {address for address, _ in listening} == {"127.0.0.1"}
    (store,) = [port for address, port in listens(processes[0])]
    run_ids = plant(store, tmp_path / "canary")
    assert "agents/ranks" in run_ids
    steps = len(metrics(runs / "alone"))
    wait_until(lambda: len(metrics(runs / "alone")) > steps, launched)
    launched.send(signal.SIGKILL)
    launched.wait()
    assert_gone(processes)
    assert not (tmp_path / "canary").exists()


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def listens(pid: int) -> list[tuple[str, int]]:
    """The addresses at which a process listens for TCP connections."""
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    found = []
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    for line in [row.split() for table in tables for row in table]:
        if line[3] == "0A" and f"socket:[{line[9]}]" in links:
            address, port = line[1].split(":")
            packed = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
            found.append((str(ipaddress.ip_address(packed)), int(port, 16)))
    return found


def plant(port: int, canary: Path) -> set[str]:
    """Put a pickle that makes `canary` into a launch's store, wherever torchrun's rendezvous would read one; the prefixes."""

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


def assert_gone(processes: list[int]) -> None:
    """They end; the limit only keeps a failing test from hanging."""
    deadline = time.monotonic() + 100
    while left := [pid for pid in processes if _runs(pid)]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
