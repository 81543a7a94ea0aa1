"""What `python -m launch` prints and refuses, before it starts anything."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import network
from launch.registry import LAUNCHERS
from tests.launch.conftest import ENVIRONMENT, launch
from vgg_ddp.errors import EXIT_USER_ERROR, UserError

pytestmark = pytest.mark.processes

REQUIRED = {"kubernetes": ["--image", "here/vgg:1"]}


MISTAKES = {
    "batsh=32": "unknown key 'batsh'; did you mean 'batch'?",
    "--nproc 3 batch=32": "batch=32 does not divide over 3 ranks",
    "--nodez 2": "unknown argument --nodez",
    "--nodes 0": "argument --nodes: '0' is not a number from 1",
}
# Calls `main` with the arguments on each input line; prints the exit code, the number of output lines, and the lines.
EACH_LINE = """
import contextlib, io, sys
from launch.command_line import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["launch", *line.split("\\t")]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
    lines = said.getvalue().splitlines()
    print(code, len(lines), *lines)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_mistake_is_one_line_before_torch_is_imported(launcher: str, config: Path) -> None:
    given = ["\t".join([launcher, str(config), *REQUIRED.get(launcher, []), *words.split()]) for words in MISTAKES]
    command = [sys.executable, "-c", EACH_LINE]
    done = subprocess.run(command, input="\n".join(given), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said, message in zip(done.stdout.splitlines(), MISTAKES.values(), strict=True):
        assert said.startswith(f"{EXIT_USER_ERROR} 1 ") and message in said


@pytest.mark.parametrize("launcher", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc", "8", "--gpus-per-node", "4"], "8 ranks on a host with 4 GPUs; set --nproc to 4 or less"),
        (["--gpus-per-node", "0"], "argument --gpus-per-node: '0' is not a number from 1"),
        (["--gpus-per-node", "4", "nproc=auto", "ranks_per_gpu=2"], None),
    ],
)
def test_the_ranks_of_a_host_elsewhere_fit_on_its_gpus(
    launcher: str, words: list[str], said: str | None, config: Path
) -> None:
    given = [*REQUIRED.get(launcher, []), *words, "device=auto", "batch=64", "--dry-run"]
    done = launch_without_torch(launcher, str(config), *given)
    if said is None:
        assert done.returncode == 0, done.stderr
        assert "8" in (re.findall(r"--nproc=(\d+)|numProcPerNode: '?(\d+)", done.stdout) or [("",)])[0]
    else:
        assert (done.returncode, done.stderr.count("\n")) == (EXIT_USER_ERROR, 1) and said in done.stderr


def test_dry_run_imports_no_torch(config: Path) -> None:
    assert launch_without_torch("torchrun", str(config), "--dry-run").returncode == 0


def launch_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`launch ...`, which fails with a traceback if torch was imported."""
    code = "import sys; from launch.command_line import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_torchrun_s_dry_run_is_a_command_that_torchrun_takes(config: Path) -> None:
    options = [
        "--nodes",
        "2",
        "--nproc",
        "4",
        "--rdzv-endpoint",
        "127.0.0.1",
        "batch=64",
        "accumulation=2",
        "threads=3",
    ]
    done = launch("torchrun", str(config), *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "batch 64 = 2 nodes x 4 ranks x 4 images x 2 accumulated\n" in done.stdout
    assert "OMP_NUM_THREADS=3\n" in done.stdout and "GLOO_SOCKET_IFNAME=lo\n" in done.stdout
    (command,) = [line.split(None, 1)[1] for line in done.stdout.splitlines() if line.startswith("command")]
    from torch.distributed.run import config_from_args, parse_args

    settings, _, program = config_from_args(parse_args(shlex.split(command)[1:]))
    assert (settings.min_nodes, settings.max_nodes, settings.nproc_per_node) == (2, 2, 4)
    assert settings.rdzv_endpoint == "127.0.0.1:29500"
    assert program[-5:] == ["vgg_ddp.train", str(config), "batch=64", "accumulation=2", "threads=3"]


def test_many_hosts_need_an_endpoint(config: Path) -> None:
    done = launch("torchrun", str(config), "--nodes", "2")
    assert done.returncode == EXIT_USER_ERROR
    assert "--rdzv-endpoint HOST:PORT" in done.stderr


def test_the_train_job_is_of_the_published_schema(config: Path) -> None:
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob  # which takes half a second

    options = ["--nodes", "4", "--nproc", "2", "--gpus-per-node", "2", "--memory", "64Gi", "--interface", "eth0"]
    done = launch("kubernetes", str(config), "--image", "here/vgg:1", "--namespace", "us", *options, "batch=64")
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    job = TrainerV1alpha1TrainJob.from_dict(manifest)
    assert job is not None
    assert job.to_dict() == manifest  # fields unknown to the schema would be lost
    assert manifest["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    trainer = job.spec.trainer
    assert (trainer.num_nodes, trainer.num_proc_per_node, trainer.image) == (4, 2, "here/vgg:1")
    assert trainer.args == ["vgg_ddp.train", str(config), "batch=64", "resume=auto"]
    (job_patch,) = job.spec.runtime_patches[0].training_runtime_spec.template.spec.replicated_jobs
    pod = job_patch.template.spec.template.spec
    (mount,) = pod.containers[0].volume_mounts
    assert (mount.mount_path, pod.volumes[0].empty_dir.medium) == ("/dev/shm", "Memory")  # it would be 64 MiB otherwise
    assert mount.name == pod.volumes[0].name
    assert done.stdout.startswith("# batch 64 = 4 nodes x 2 ranks x 8 images x 1 accumulated\n")


def test_deepspeed_s_dry_run_and_what_it_lacks(config: Path, tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("one slots=2\n# a comment\ntwo slots=2\n")
    options = ["--nodes", "2", "--nproc", "2", "--hostfile", str(hostfile), "--node-rank", "1"]
    done = launch("deepspeed", str(config), *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("--num_nodes=2", "--num_gpus=2", "--master_addr=one", "--no_ssh", "--node_rank=1", "engine=deepspeed"):
        assert word in done.stdout
    too_few = launch("deepspeed", str(config), "--nodes", "4", "--nproc", "1", "--hostfile", str(hostfile))
    assert "lists 2 hosts, fewer than --nodes 4" in too_few.stderr
    if importlib.util.find_spec("deepspeed") is None:
        missing = launch("deepspeed", str(config), "--nproc", "1")
        assert (missing.returncode, len(missing.stderr.splitlines())) == (EXIT_USER_ERROR, 1)
        assert "deepspeed is not installed" in missing.stderr


@pytest.mark.parametrize(
    ("hosts", "options", "message"),
    [
        ("one\ntwo slots=2\n", [], "has the line 'one', which is not 'HOST slots=N'"),
        ("one slots=2\none slots=2\n", [], "lists one twice; give each host one line"),
        ("one slots=2\ntwo slots=2\n", ["--node-rank", "5"], "--node-rank 5 is no host of --nodes 2: from 0 to 1"),
    ],
)
def test_deepspeed_s_hosts_are_checked(
    hosts: str, options: list[str], message: str, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text(hosts)
    two = ["--nodes", "2", "--nproc", "1", "--hostfile", str(tmp_path / "hosts")]
    done = launch("deepspeed", str(config), *two, *options, "--dry-run")
    assert (done.returncode, len(done.stderr.splitlines())) == (EXIT_USER_ERROR, 1)
    assert message in done.stderr


def test_a_host_that_calls_itself_loopback_is_reached_by_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian's /etc/hosts, which gives the host's name the address 127.0.1.1."""
    monkeypatch.setattr(network.socket, "gethostbyname", lambda host: "127.0.1.1")
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1", "eth7": "10.0.0.7"})
    assert network.resolve("node1", "eth7") == "10.0.0.7"
    assert network.resolve("localhost") == "127.0.1.1"
    assert network.resolve("node1") == "10.0.0.7"
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1"})
    assert network.resolve("node1") == "127.0.1.1"  # a rehearsal on one machine
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1", "eth7": "10.0.0.7", "eth8": "10.0.1.7"})
    monkeypatch.setattr(network, "_outwards", lambda: "10.0.1.7")
    assert network.resolve("node1") == "10.0.1.7"
    monkeypatch.setattr(network, "_outwards", lambda: "")
    with pytest.raises(UserError, match=r"node1 is 127\.0\.1\.1 here, which no other host can reach; give its address"):
        network.resolve("node1")


def test_slurm_s_directives_are_quoted(config: Path) -> None:
    done = launch("slurm", str(config), "--nproc", "1", "--name", "my job", "--logs", "my logs", "--dry-run")
    assert "#SBATCH --job-name='my job'\n" in done.stdout
    assert "#SBATCH --output='my logs/%x-%j.log'\n" in done.stdout
