"""Training on two hosts, and what a user sees when they cannot work together."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measurement.two_hosts import Host, Hosts, limit, two_hosts, why_not
from tests.launch.conftest import ENVIRONMENT, LAUNCH, ROOT, assert_same_weights, on_one_host, steps_logged
from tests.support.processes import ranks_of, runs
from tests.support.rank_processes import Command
from tests.support.slurm_cluster import wait_until
from vgg_ddp.errors import EXIT_STOPPED, EXIT_USER_ERROR

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with two_hosts() as hosts:
        limit(hosts, 200)  # Mbit/s: a third of a second of communication per step
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(disk: Path, config: Path) -> Path:
    """The run of two ranks on one host."""
    return on_one_host(disk / "undisturbed", config)


class Launches:
    """Starts `python -m launch` on hosts for one test, after which none is left running."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"10.77.0.1:{port}"
        self.started: list[Command | subprocess.Popen[str]] = []

    def start(self, host: Host, config: Path, *options: str, endpoint: str | None = None) -> Command:
        """A torchrun launch, forked."""
        words = of_two_hosts("torchrun", config, "--rdzv-endpoint", endpoint or self.endpoint, *options)
        launch = Command("launch", *words, folder=ROOT, namespace=host.namespace)
        self.started.append(launch)
        return launch

    def start_anew(
        self, launcher: str, host: Host, config: Path, *options: str, code: Path = ROOT
    ) -> subprocess.Popen[str]:
        """A launch in a new process, which imports the code in a folder."""
        launch = subprocess.Popen(
            [*host.inside, *LAUNCH, *of_two_hosts(launcher, config, *options)],
            env={**ENVIRONMENT, "PYTHONPATH": str(code)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=code,
        )
        self.started.append(launch)
        return launch


def of_two_hosts(launcher: str, config: Path, *options: str) -> list[str]:
    """The words after `python -m launch` for a rank on each of two hosts."""
    return [launcher, str(config), "--nodes", "2", "--nproc", "1", *options]


PORTS = itertools.count(29500)


@pytest.fixture
def launches(hosts: Hosts) -> Iterator[Launches]:
    launches = Launches(next(PORTS))
    yield launches
    for launch in launches.started:
        launch.kill()
        launch.communicate()
    assert_gone(hosts)


def ends(*launches: Command | subprocess.Popen[str]) -> tuple[list[int], list[str]]:
    """The exit codes, and what was said on stderr."""
    deadline = time.monotonic() + 300
    said = [launch.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for launch in launches]
    return [launch.returncode for launch in launches], said


def processes(host: Host) -> list[int]:
    """The processes in a host."""
    listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]


def assert_gone(hosts: Hosts) -> None:
    """Every process ends; the limit only keeps a failing test from hanging."""
    deadline = time.monotonic() + 100
    while any(processes(host) for host in hosts):
        assert time.monotonic() < deadline, [
            Path(f"/proc/{pid}/cmdline").read_bytes() for h in hosts for pid in processes(h)
        ]
        time.sleep(0.05)


def test_two_hosts_come_to_the_same_weights_as_one(launches: Launches, hosts: Hosts, config: Path, disk: Path) -> None:
    run, few = disk / "two hosts", "min_steps=4"
    options = ["--rdzv-endpoint", launches.endpoint, f"run.dir={run}", few]
    codes, said = ends(*(launches.start_anew("torchrun", host, config, *options) for host in hosts))
    assert codes == [0, 0], said
    assert_same_weights(run, on_one_host(disk / "one host", config, few))


def test_deepspeed_s_launcher_on_two_hosts_comes_to_the_same_weights_as_on_one(
    launches: Launches, hosts: Hosts, config: Path, disk: Path
) -> None:
    """Without ssh: the same command on each host, with its node rank."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    few = "min_steps=4"
    one = on_one_host(disk / "deepspeed on one host", config, "engine=deepspeed", few)
    hostfile = disk / "hosts"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    address, port = launches.endpoint.split(":")
    run = disk / "deepspeed on two hosts"
    started = []
    for number, host in enumerate(hosts):
        options = ["--hostfile", str(hostfile), "--master-addr", address, "--master-port", port]
        options += ["--node-rank", str(number), "--interface", host.interface, few, f"run.dir={run}"]
        started.append(launches.start_anew("deepspeed", host, config, *options))
    codes, said = ends(*started)
    assert codes == [0, 0], said
    assert_same_weights(run, one)


def endless(launches: Launches, hosts: Hosts, config: Path, run: Path, *options: str) -> list[Command]:
    """A training on both hosts that has begun and would go on for long."""
    started = [launches.start(host, config, *options, f"run.dir={run}", "min_steps=10000") for host in hosts]
    wait_until(lambda: steps_logged(run) >= 2)
    return started


@pytest.mark.parametrize(("number", "who"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_signal_to_one_host_saves_and_ends_both(
    number: signal.Signals, who: int, launches: Launches, hosts: Hosts, config: Path, disk: Path
) -> None:
    run = disk / number.name
    started = endless(launches, hosts, config, run, "--grace", "90")  # however busy the machine is
    started[who].send_signal(number)
    assert_gone(hosts)
    codes, said = ends(*started)
    assert codes == [EXIT_STOPPED] * 2, said
    assert (run / "checkpoints" / "latest").is_file()


def test_a_rank_that_is_killed_starts_all_again_on_both_hosts(
    launches: Launches, hosts: Hosts, config: Path, undisturbed: Path, disk: Path
) -> None:
    run = disk / "killed on one host"
    words = (f"run.dir={run}", "checkpoint.every_steps=2")
    started = [launches.start(host, config, *words) for host in hosts]
    wait_until(lambda: steps_logged(run) >= 3)
    (rank,) = ranks_of(started[1].pid)
    os.kill(rank, signal.SIGKILL)
    codes, said = ends(*started)
    assert codes == [0, 0], said
    for text in said:
        assert one_line(text).startswith("vgg-ddp: rank 1 was killed by SIGKILL "), said
        assert text.endswith("; all ranks start again from the newest checkpoint (restart 1 of 3)\n"), said
    assert_same_weights(run, undisturbed)


def test_a_host_whose_ranks_ended_well_ends_as_the_other_does(
    launches: Launches, hosts: Hosts, config: Path, disk: Path
) -> None:
    """Rank 0 cannot write the evaluation, which is its work alone."""
    run = disk / "not evaluated"
    run.mkdir()
    (run / "evaluation").touch()
    codes, said = ends(*(launches.start(host, config, f"run.dir={run}", "min_steps=2") for host in hosts))
    assert codes == [EXIT_USER_ERROR] * 2, said
    assert one_line("".join(said)).startswith(f"vgg-ddp: {run}/evaluation"), said


def test_a_link_that_is_cut_and_mended(
    launches: Launches, hosts: Hosts, config: Path, undisturbed: Path, disk: Path
) -> None:
    """For longer than `timeout`: the ranks wait for each other, are ended on both hosts, and restart once mended."""
    run = disk / "link"
    words = (f"run.dir={run}", "checkpoint.every_steps=2", "timeout=15", "--grace", "90")
    started = [launches.start(host, config, *words) for host in hosts]
    wait_until(lambda: steps_logged(run) >= 3)
    ranks = [rank for launch in started for rank in ranks_of(launch.pid)]
    cut(hosts, True)
    try:
        wait_until(lambda: not runs(ranks[0]), 60)  # the rank on the host with the store
    finally:
        cut(hosts, False)
    codes, said = ends(*started)
    assert codes == [0, 0], said
    for text in said:
        assert "; all ranks start again from the newest checkpoint (restart 1 of 3)" in one_line(text), said
    assert_same_weights(run, undisturbed)


def cut(hosts: Hosts, down: bool) -> None:
    """Cut the link between hosts, or mend it."""
    words = ["ip", "-n", hosts[1].namespace, "link", "set", hosts[1].interface, "down" if down else "up"]
    subprocess.run(words, check=True)


def test_ranks_that_do_not_end_are_killed(launches: Launches, hosts: Hosts, config: Path, disk: Path) -> None:
    started = endless(launches, hosts, config, disk / "stuck")
    ranks = [pid for host in hosts for pid in processes(host) if pid not in {launch.pid for launch in started}]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)  # like a rank that waits for a device or a disk
    started[0].send_signal(signal.SIGINT)
    assert_gone(hosts)
    codes, said = ends(*started)
    assert 0 not in codes
    assert "did not end in 4 s: killed" in said[0]


def one_line(said: str) -> str:
    """Its only line."""
    assert len(said.splitlines()) == 1, said
    return said


def test_ctrl_c_while_the_others_are_awaited_ends_the_launch(launches: Launches, hosts: Hosts, config: Path) -> None:
    waiting = launches.start(hosts[0], config)
    listening = [*hosts[0].inside, "ss", "-Hltn", f"sport = :{launches.endpoint.split(':')[1]}"]
    wait_until(lambda: subprocess.run(listening, capture_output=True, text=True, check=True).stdout != "")
    waiting.send_signal(signal.SIGINT)
    assert ends(waiting) == ([128 + signal.SIGINT], ["launch: stopped by SIGINT; nothing to save\n"])


def test_a_host_that_does_not_arrive(launches: Launches, hosts: Hosts, config: Path) -> None:
    started = [launches.start(hosts[0], config, "--timeout", "3")]
    started.append(launches.start(hosts[1], config, "--timeout", "3", endpoint="10.77.0.1:29600"))
    codes, said = ends(*started)
    assert codes == [EXIT_USER_ERROR] * 2, said
    assert one_line(said[0]).startswith(f"launch: 1 of 2 hosts arrived at {launches.endpoint} within 3 s")
    assert one_line(said[1]).startswith("launch: no launch was found at 10.77.0.1:29600 within 3 s")


def test_a_port_in_use(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        command = [*LAUNCH, "torchrun", str(config), "--nodes", "2", "--rdzv-endpoint", endpoint]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_USER_ERROR
    assert one_line(done.stderr).startswith(f"launch: port {endpoint.split(':')[1]} of 127.0.0.1 is in use")


def test_a_wrong_interface(launches: Launches, hosts: Hosts, config: Path) -> None:
    started = [launches.start(hosts[1], config, "--interface", "eth7")]
    started.append(launches.start(hosts[0], config, "--interface", "lo"))
    codes, said = ends(*started)
    assert codes == [EXIT_USER_ERROR] * 2, said
    assert one_line(said[0]).startswith("launch: --interface eth7 does not exist on ")
    assert hosts[1].interface in said[0]
    assert one_line(said[1]).startswith("launch: --interface lo leads to no other host")


def test_an_interface_that_leads_elsewhere(launches: Launches, hosts: Hosts, config: Path) -> None:
    inside = ["ip", "-n", hosts[1].namespace]
    for words in (
        ["link", "add", "elsewhere", "type", "veth", "peer", "name", "other"],
        ["address", "add", "10.99.0.1/24", "dev", "elsewhere"],
    ):
        subprocess.run([*inside, *words], check=True)
    subprocess.run([*inside, "link", "set", "elsewhere", "up"], check=True)
    started = [launches.start(hosts[0], config), launches.start(hosts[1], config, "--interface", "elsewhere")]
    codes, said = ends(*started)
    assert codes == [EXIT_USER_ERROR] * 2, said
    assert "cannot reach" in one_line(said[0]) and "its interface elsewhere" in said[0]
    one_line(said[1])


def test_other_code_on_the_second_host(launches: Launches, hosts: Hosts, config: Path, disk: Path) -> None:
    other = disk / "other code"
    for package in ("vgg_ddp", "launch"):
        shutil.copytree(ROOT / package, other / package)
    with (other / "vgg_ddp" / "train.py").open("a") as file:
        file.write("# changed\n")
    options = ["--rdzv-endpoint", launches.endpoint, f"run.dir={disk / 'unused'}"]
    started = [
        launches.start_anew("torchrun", host, config, *options, code=code) for host, code in zip(hosts, (ROOT, other))
    ]
    codes, said = ends(*started)
    assert codes == [EXIT_USER_ERROR] * 2, said
    assert one_line("".join(said)).startswith("vgg-ddp: rank 1 on ")
    assert "(code " in said[1] and "install the same on every host" in said[1]
