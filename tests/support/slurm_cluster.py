"""A Slurm cluster of two nodes on this machine, from Debian's packages slurm-wlm and munge, as root.

Two slurmd under the node names n1 and n2, of one CPU each, behind one slurmctld. A job of the partition `high`
preempts one of `low`, which is queued again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.rank_processes import TIMEOUT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_min_interval=0
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=1
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=1
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """A running cluster; `environment` makes its commands find it."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, e.g. JobState and Restarts."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, name: str) -> None:
        self.daemons[name] = self._daemon(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Simulate a power failure: its daemon and all that it started die at once, the steps' own daemons too."""
        self.daemons[name].kill()
        self.daemons[name].wait()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if f"SLURMD_NODENAME={name}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    if (Path("/proc") / parent / "comm").read_text().strip() == "slurmstepd":
                        os.kill(int(parent), signal.SIGKILL)
                    os.kill(int(process.name), signal.SIGKILL)

    def _daemon(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)

    def start(self) -> None:
        files = [f"--{name}={self.folder}/munge.{kind}" for name, kind in MUNGE_FILES]
        self.daemons["munged"] = self._daemon("munged", "munged", "--force", "--foreground", *files)
        wait_until((self.folder / "munge.socket").exists, 300)
        self.daemons["slurmctld"] = self._daemon("slurmctld", "slurmctld", "-D")
        wait_until(self._answers, 300)
        for name in ("n1", "n2"):
            self.start_node(name)
        wait_until(lambda: self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == "2", 300)

    def _answers(self) -> bool:
        """Whether slurmctld does; `scontrol ping` fails as long as it does not."""
        with contextlib.suppress(AssertionError):
            return "UP" in self.run("scontrol", "ping")
        return False

    def stop(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "--user=root")
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


MUNGE_FILES = (
    ("socket", "socket"),
    ("key-file", "key"),
    ("pid-file", "pid"),
    ("log-file", "out"),
    ("seed-file", "seed"),
)


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster whose files are all in `folder`; gone at the end."""
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    ports = [free_port() for _ in range(3)]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports))
    cluster = Cluster(folder, {**os.environ, "SLURM_CONF": str(configuration)}, {})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster of its own needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else None


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the wait timed out"
        time.sleep(0.1)
