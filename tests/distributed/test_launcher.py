"""How many ranks a host starts, and what their exit codes become."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

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
    start = f"import sys; from vgg_ddp.distributed.launcher import start; sys.exit(start('ending', [], {len(codes)}))"
    done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == code


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(
        textwrap.dedent("""
        import os, pathlib, time
        from vgg_ddp.distributed.devices import Devices
        from vgg_ddp.distributed.world import joined
        if __name__ == "__main__":
            with joined(devices=Devices(device="cpu")) as world:
                pathlib.Path(f"pid{world.rank}").write_text(str(os.getpid()))
                time.sleep(3600)
        """)
    )
    start = "from vgg_ddp.distributed.launcher import start; start('waiting', [], 2)"
    parent = subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    deadline = time.monotonic() + 300
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [int(file.read_text()) for file in files]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 300
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
