"""Training under a real Slurm: submitted, preempted, queued again, finished with the weights of an undisturbed run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import ENVIRONMENT, LAUNCH, assert_same_weights, launch, on_one_host, steps_logged
from tests.support.slurm_cluster import Cluster, slurm_cluster, wait_until, why_not

LONG = "min_steps=80"  # takes some seconds, in which Slurm can intervene


@pytest.fixture(scope="module")
def cluster(disk: Path) -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = disk / "slurm"
    folder.mkdir()
    with slurm_cluster(folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(disk: Path, config: Path) -> Path:
    """The run of two ranks on one host."""
    return on_one_host(disk / "undisturbed long", config, LONG)


def submit(cluster: Cluster, config: Path, run: Path, *options: str) -> str:
    command = [*LAUNCH, "slurm", str(config), "--nodes", "2", "--nproc", "1", "--save-before", "30", *options]
    done = subprocess.run(
        [*command, f"run.dir={run}", LONG],
        env={**ENVIRONMENT, "SLURM_CONF": cluster.environment["SLURM_CONF"]},
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def logs(cluster: Cluster) -> str:
    files = [*sorted((cluster.folder / "logs").glob("*.log")), *cluster.folder.glob("*.log")]
    return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in files)


def finished(cluster: Cluster, job: str) -> bool:
    return cluster.state(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.mark.host
def test_a_job_that_is_preempted_and_then_loses_a_node_ends_with_the_same_weights(
    cluster: Cluster, config: Path, undisturbed: Path
) -> None:
    """The second node dies with all its processes, and comes back later."""
    run = cluster.folder / "run"
    job = submit(cluster, config, run, "--partition", "low", "checkpoint.every_steps=2")
    wait_until(lambda: steps_logged(run) >= 3 or finished(cluster, job))
    urgent = cluster.run("sbatch", "--parsable", "-p", "high", "-N2", "-o", "urgent.log", "--wrap", "srun hostname")
    wait_until(lambda: finished(cluster, urgent.strip()))
    assert cluster.state(job)["Restarts"] == "1", logs(cluster)
    assert "stopped on request, a checkpoint is saved" in logs(cluster)
    preempted_at = steps_logged(run)
    wait_until(lambda: steps_logged(run) >= preempted_at + 3 or finished(cluster, job))
    cluster.kill_node("n2")
    wait_until(lambda: cluster.state(job).get("Restarts") == "2" or finished(cluster, job))
    cluster.start_node("n2")
    wait_until(lambda: finished(cluster, job))
    state = cluster.state(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), logs(cluster)
    for node in (0, 1):
        assert (cluster.folder / "logs" / f"vgg_ddp-{job}-node{node}.log").is_file()
    assert logs(cluster).count("continuing at step") == 2
    assert_same_weights(run, undisturbed)


def test_the_script_has_what_was_asked_for(config: Path) -> None:
    options = ["--nodes", "4", "--gpus-per-node", "2", "--time", "1:00:00", "--account", "us", "--sbatch=--qos=high"]
    done = launch("slurm", str(config), *options, "--dry-run", "batch=64", "run.dir=a b")
    assert done.returncode == 0, done.stderr
    directives = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=4", "--gpus-per-node=2", "--time=1:00:00", "--account=us", "--qos=high", "--requeue"} <= directives
    assert "# batch 64 = 4 nodes x 1 rank x 16 images x 1 accumulated" in done.stdout  # nproc is from the configuration
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    assert "overrides=(batch=64 'run.dir=a b')" in done.stdout
