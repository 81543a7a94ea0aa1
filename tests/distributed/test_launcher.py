"""How many ranks a host starts, and what their exit codes become."""

from __future__ import annotations

import ast
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import assert_gone, descendants, ranks_of
from tests.support.rank_processes import Ranks, wait_until
from vgg_ddp.config import Config
from vgg_ddp.distributed import launcher, supervisor
from vgg_ddp.distributed.agent import ForkingAgent
from vgg_ddp.distributed.fork_server import ForkServer
from vgg_ddp.distributed.hangs import is_stopped
from vgg_ddp.distributed.supervisor import Task

pytestmark = pytest.mark.processes


def test_as_many_ranks_as_asked_for() -> None:
    assert launcher.ranks_of_this_host(Config(nproc=3)) == 3


@pytest.mark.parametrize(
    ("codes", "code"), [([2, 1], 2), ([75, 75], 75), ([1, -9], 1), ([-15, 76], 143), ([138, 138], 138), ([-9, 76], 1)]
)
def test_our_exit_codes_pass_through(tmp_path: Path, codes: list[int], code: int) -> None:
    """Real ranks that end with the given codes (negative: by that signal), each after the one before it."""
    (tmp_path / "ending.py").write_text(
        textwrap.dedent(f"""
        import os, pathlib, time

        def has_ended(rank):
            if not os.path.lexists(f"pid {{rank}}"):
                return False
            try:
                return pathlib.Path("/proc", os.readlink(f"pid {{rank}}"), "stat").read_text().rsplit(")", 1)[1][1] == "Z"
            except FileNotFoundError:
                return True

        def main(arguments):
            rank = int(os.environ["RANK"])
            code = {codes}[rank]
            os.symlink(str(os.getpid()), f"pid {{rank}}")
            while rank and not has_ended(rank - 1):
                time.sleep(0.01)
            if code < 0:
                os.kill(os.getpid(), -code)
            return code
        """)
    )
    launched = Ranks(_launch_in, (tmp_path, "ending", len(codes)), 1, tmp_path / "output")
    assert launched.wait() == [code], launched.stderr


WHILE_IMPORTING = "import time; time.sleep(3600)"
AS_RANKS = f"def main(arguments): {WHILE_IMPORTING}"


@pytest.mark.parametrize(("waiting", "processes"), [(WHILE_IMPORTING, 1), (AS_RANKS, 3)])
def test_no_rank_outlives_a_launcher_that_is_killed_at_once(waiting: str, processes: int, tmp_path: Path) -> None:
    """While the process that ranks are forked from imports what they run, or with ranks that have just been forked."""
    (tmp_path / "waiting.py").write_text(waiting)
    launched = Ranks(_launch_in, (tmp_path, "waiting", 2), 1, tmp_path / "output")
    wait_until(lambda: len(descendants(launched.processes[0].pid)) >= processes, launched)
    ranks = descendants(launched.processes[0].pid)
    launched.send(signal.SIGKILL)
    launched.wait()
    assert_gone(ranks)


def _enter(folder: Path, group: Callable[[], object] = os.setpgrp) -> None:
    os.chdir(folder)
    group()  # as a shell does for a job
    sys.path.append(str(folder))


def _launch_in(
    folder: Path,
    module: str,
    ranks: int,
    restarts: int = 0,
    timeout: float | None = None,
    group: Callable[[], object] = os.setpgrp,
) -> int:
    _enter(folder, group)
    return launcher.start(Task(module, [], [], restarts, timeout), ranks)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_before_the_ranks_have_begun_is_one_line(number: int, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(AS_RANKS)
    launched = Ranks(_launch_in, (tmp_path, "waiting", 2, 3), 1, tmp_path / "output")
    wait_until(lambda: len(descendants(launched.processes[0].pid)) >= 3, launched)
    launched.send(number)
    assert launched.wait() == [128 + number]
    (line,) = launched.stderr.splitlines()
    assert line == f"vgg-ddp: stopped by {signal.Signals(number).name} before the first step; nothing to save"


@pytest.mark.parametrize(
    ("end", "attempts", "told"),
    [
        ("return 1", 1, "rank 1 failed with exit code 1 at its start, before it had taken a step: not tried again"),
        (
            "os.kill(os.getpid(), 9)",
            4,
            "rank 1 was killed by SIGKILL at its start, again: no step further in 3 restarts",
        ),
        # The process that ranks are forked from, and both ranks with it.
        (
            "os.kill(os.getppid(), 9)",
            4,
            "rank 0 was killed by SIGKILL at its start, again: no step further in 3 restarts",
        ),
    ],
)
def test_a_failure_that_comes_back_is_told_and_ends(end: str, attempts: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import os, time\ndef main(arguments):\n if os.environ['RANK'] == '0': time.sleep(3600)\n"
        f" open('tries', 'a').write('x')\n {end}\n time.sleep(3600)"
    )
    launched = Ranks(_launch_in, (tmp_path, "failing", 2, 3), 1, tmp_path / "output")
    assert launched.wait() == [1]
    assert (tmp_path / "tries").read_text() == attempts * "x"
    *restarts, last = launched.stderr.splitlines()
    assert last == f"vgg-ddp: {told}"
    again = f"{told[:6]} was killed by SIGKILL at its start; all ranks start again from the newest checkpoint"
    assert restarts == [f"vgg-ddp: {again} (restart {number} of 3)" for number in range(1, attempts)]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_rank_that_is_left_is_asked_to_end(failing: int, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        f"import os, time\ndef main(arguments):\n if os.environ['RANK'] == '{failing}':\n"
        "  while not os.path.exists('begun'): time.sleep(0.01)\n"
        "  return 1\n"
        " try:\n  open('begun', 'w')\n  time.sleep(3600)\n finally: open('asked', 'w')"
    )
    launched = Ranks(_launch_in, (tmp_path, "failing", 2), 1, tmp_path / "output")
    assert launched.wait() == [1]
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_suspended_launch_has_its_ranks_wait_and_none_hangs(ranks: int, tmp_path: Path) -> None:
    """As by Ctrl-Z, for longer than a rank may go without a sign of life."""
    (tmp_path / "stepping.py").write_text(
        "import itertools, os, time\nfrom vgg_ddp.distributed.activity import Activity\n"
        "def main(arguments):\n activity = Activity.of_rank()\n activity.begin(0)\n"
        " for step in itertools.count(1):\n"
        "  activity.enter('fetch', step)\n  time.sleep(0.01)\n  activity.enter('step')\n"
        "  open('begun ' + os.environ['RANK'], 'w')\n"
        "  if os.path.exists('end'): return 0\n"
    )
    timeout = 3.0
    launched = Ranks(_launch_in, (tmp_path, "stepping", ranks, 3, timeout), 1, tmp_path / "output")
    supervisor = launched.processes[0].pid
    wait_until(lambda: all((tmp_path / f"begun {rank}").exists() for rank in range(ranks)), launched)
    launched.send(signal.SIGTSTP)
    stopped = [supervisor, *ranks_of(supervisor)]
    assert len(stopped) == 1 + ranks
    wait_until(lambda: all(map(is_stopped, stopped)), launched)
    time.sleep(timeout + 1)
    launched.send(signal.SIGCONT)
    (tmp_path / "end").touch()
    assert launched.wait() == [0], launched.stderr
    assert launched.stderr == ""


def test_a_rank_that_fails_at_once_is_the_one_that_is_told(tmp_path: Path) -> None:
    """Even before both were seen running; the other, which waits for it and ignores SIGTERM, is killed."""
    (tmp_path / "failing.py").write_text(
        "import os, signal, time\ndef main(arguments):\n if os.environ['RANK'] == '0': return 1\n"
        " signal.signal(signal.SIGTERM, signal.SIG_IGN)\n time.sleep(3600)\n"
    )
    launched = Ranks(_launch_in, (tmp_path, "failing", 2, 3), 1, tmp_path / "output")
    assert launched.wait() == [1]
    told = "vgg-ddp: rank 0 failed with exit code 1 at its start, before it had taken a step: not tried again\n"
    assert launched.stderr == told


def _launch_with_grace(folder: Path, module: str, grace: float) -> int:
    _enter(folder)
    with launcher.own_ranks(), ForkServer(module) as server:
        return supervisor.run(Task(module, [], []), 1, None, server, grace)


def test_the_grace_period_goes_on_after_a_suspension(tmp_path: Path) -> None:
    """The time that a rank was suspended while it saved does not count."""
    (tmp_path / "saving.py").write_text(
        "import os, signal, time\ndef main(arguments):\n asked = []\n"
        " signal.signal(signal.SIGTERM, lambda *about: asked.append(1))\n"
        " time.sleep(1)\n"  # time for the supervisor to learn that this rank runs
        " open('begun', 'w')\n"
        " while not asked: time.sleep(0.01)\n"
        " open('saving', 'w')\n"
        " while not os.path.exists('go on'): time.sleep(0.01)\n"
        " time.sleep(1)\n"  # a supervisor that counted the suspension would kill the rank in this time
        " return 75\n"
    )
    grace = 5.0
    launched = Ranks(_launch_with_grace, (tmp_path, "saving", grace), 1, tmp_path / "output")
    wait_until((tmp_path / "begun").exists, launched)
    launched.send(signal.SIGTERM)
    wait_until((tmp_path / "saving").exists, launched)
    launched.send(signal.SIGTSTP)
    wait_until(lambda: is_stopped(launched.processes[0].pid), launched)  # type: ignore[arg-type]
    time.sleep(grace)
    (tmp_path / "go on").touch()
    launched.send(signal.SIGCONT)
    assert launched.wait() == [75], launched.stderr


def test_what_no_shell_could_let_go_on_is_not_suspended(tmp_path: Path) -> None:
    """A session leader, such as a container's first process."""
    (tmp_path / "stepping.py").write_text(
        "import os, signal, time\ndef main(arguments):\n open('begun ' + os.environ['RANK'], 'w')\n"
        " while not os.path.exists('end'): time.sleep(0.01)\n"
        " return 0\n"
    )
    launched = Ranks(_launch_in, (tmp_path, "stepping", 2, 0, None, os.setsid), 1, tmp_path / "output")
    wait_until(lambda: all((tmp_path / f"begun {rank}").exists() for rank in range(2)), launched)
    launched.send(signal.SIGTSTP)
    time.sleep(1)  # time in which it would be suspended
    assert not is_stopped(launched.processes[0].pid)  # type: ignore[arg-type]
    (tmp_path / "end").touch()
    assert launched.wait() == [0], launched.stderr
    assert launched.stderr == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_files_in_the_current_directory_stand_in_for_no_module(ranks: int, tmp_path: Path) -> None:
    for name in ("random", "signal", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('none of ours')")
    (tmp_path / "importing.py").write_text("import random, signal, torch\ndef main(arguments): return 0")
    launched = Ranks(_launch_in, (tmp_path, "importing", ranks, 3), 1, tmp_path / "output")
    assert launched.wait() == [0], launched.stderr


def test_a_rank_knows_its_own_command_line(tmp_path: Path) -> None:
    """The run records it, rather than that of the process the rank was forked from."""
    text = "import sys\ndef main(arguments):\n open('told', 'w').write(repr(sys.argv))\n return 0"
    (tmp_path / "telling.py").write_text(text)
    launched = Ranks(_launch_in, (tmp_path, "telling", 2), 1, tmp_path / "output")
    assert launched.wait() == [0], launched.stderr
    assert ast.literal_eval((tmp_path / "told").read_text()) == [str(tmp_path / "telling.py")]


def _launch_without_patience(folder: Path, module: str, ranks: int) -> int:
    ForkingAgent._shutdown.__defaults__ = (signal.SIGTERM, 1)
    return _launch_in(folder, module, ranks)


def test_a_rank_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import os, time\ndef main(arguments):\n if os.environ['RANK'] == '1':\n"
        "  while not os.path.exists('begun'): time.sleep(0.01)\n"
        "  return 2\n"
        " while True:\n  try:\n   open('begun', 'w')\n   time.sleep(3600)\n"
        "  except BaseException: open('asked', 'w')"
    )
    launched = Ranks(_launch_without_patience, (tmp_path, "failing", 2), 1, tmp_path / "output")
    assert launched.wait() == [2]
    assert (tmp_path / "asked").exists()
