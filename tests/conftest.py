"""What all tests share: their settings, the digits prepared once, and small runs on some of them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
import torch
import yaml

from tests.support.rank_processes import Ranks, Train, start
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.record import FileRecord, SplitRecord, encoded
from vgg_ddp.run.files import file_sha256

# Variables of the caller's shell, terminal, job or login, which must not reach the tests or the processes they start.
INHERITED = (
    "WANDB_",
    "TORCHELASTIC_",
    "TORCH_",
    "SLURM_",
    "PMI_",
    "OMPI_",
    "GLOO_",
    "NCCL_",
    "MASTER_",
    "LOCAL_",
    "DS_",
)
INHERITED += (
    "RANK",
    "WORLD_SIZE",
    "GROUP_",
    "ROLE_",
    "OMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
)
INHERITED += ("FORCE_COLOR", "CLICOLOR", "PY_COLORS", "TTY_", "PYTHONWARNINGS", "PYTHONOPTIMIZE")
INHERITED += ("PYTHONDONTWRITEBYTECODE",)  # set in container images: every process would recompile all modules
sys.dont_write_bytecode = False
for name in [name for name in os.environ if name.startswith(INHERITED)]:
    del os.environ[name]
os.environ["WANDB_MODE"] = "disabled"  # no test run may reach the account of whoever is logged in
os.environ["NETRC"] = os.devnull
os.environ["COLUMNS"] = "80"
os.environ["OMP_NUM_THREADS"] = "1"  # for commands: the test workers and their ranks share the cores
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `launch` sets it, which is too late in forked commands
torch.set_num_threads(1)
for number in (signal.SIGINT, signal.SIGHUP):  # ignored under nohup or in the background; children inherit that
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)  # still does nothing here; programs that are started get the default
# Derandomised, so that everyone sees the same failures; without deadlines, since machines differ.
hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=60, database=None, print_blob=False
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def own_arithmetic() -> Iterator[None]:
    """Reset process-wide settings that a test, or a command that it calls, may have changed."""
    yield
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options are added here, since pytest takes them only from the outermost conftest."""
    parser.addoption(
        "--gpu-rehearsal", action="store_true", help="run the bodies of tests/gpu on the CPU without a GPU"
    )
    parser.addoption("--chaos", choices=("small", "whole"), default="small", help="how much of tests/chaos is done")
    parser.addoption("--chaos-seed", default="0", help="at which moments and places")


def pytest_configure(config: pytest.Config) -> None:
    """Only tests/gpu sees a GPU, in a session of its own: all other tests, and what they start, compute on the CPU."""
    if not all("tests/gpu" in word for word in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


STARTING = {"launch", "train", "start_with", "runs"}  # fixtures that start processes
STARTERS = {"Command", "Ranks", "apart", "program", "vgg_ddp", "Popen"}  # functions with which other tests start them


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start processes; run those that take minutes first, so that no worker ends with one."""
    for item in items:
        called = item.function.__code__.co_names if isinstance(item, pytest.Function) else ()
        if not (STARTING.isdisjoint(getattr(item, "fixturenames", ())) and STARTERS.isdisjoint(called)):
            item.add_marker("processes")
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("host")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """For tests that collect garbage: exempt all objects that exist already, which makes collections quick."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A place for runs: in memory where possible, since checkpoints are large."""
    shared = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="vgg_ddp-", dir=shared if os.access(shared, os.W_OK) else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def digits(disk: Path) -> Path:
    """The prepared dataset: 1,438 training and 359 test images."""
    return ensure(DataConfig(source="digits", directory=str(disk)), lambda text: None)[0]


@pytest.fixture(scope="session")
def few_digits(disk: Path, digits: Path) -> Path:
    """The first 16 training and 4 test images of each class, for runs in which the number of images does not matter.

    With noise in every pixel: on a flat background, rounding would decide which pixel is a pool's maximum, and with it
    where the gradient goes.
    """
    target = disk / "few"
    target.mkdir()
    record = Dataset(digits).record
    noise = np.random.default_rng(0).integers(0, 128, (160, 32, 32, 3), dtype=np.uint8)
    splits = {}
    for split, count in (("train", 16), ("test", 4)):
        labels, images = (np.load(digits / f"{split}.{kind}.npy") for kind in ("labels", "images"))
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
        files = []
        for name, array in (
            (f"{split}.images.npy", images[chosen] // 2 + noise[: len(chosen)]),
            (f"{split}.labels.npy", labels[chosen]),
        ):
            np.save(target / name, array)
            files.append(FileRecord(name, (target / name).stat().st_size, file_sha256(target / name)))
        splits[split] = SplitRecord(len(chosen), [count] * 10, files)
    (target / "dataset.json").write_bytes(encoded(msgspec.structs.replace(record, splits=splits)))
    return target


@pytest.fixture(scope="session")
def recipe(disk: Path, few_digits: Path) -> Path:
    """A configuration of quick, bitwise reproducible steps: a narrow network, 16-pixel crops, one thread."""
    path = disk / "recipe.yaml"
    settings = {
        "network": "vgg_tiny",
        "batch": 16,
        "epochs": 1e-9,  # so that min_steps decides
        "device": "cpu",
        "nproc": 1,
        "threads": 1,
        "precision": "fp32",
        "loader": "torch",
        "data": {"source": str(few_digits), "image_size": 16, "resize": None, "validation": 0, "workers": 0},
        "augment": {"flip": True},
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"name": "constant"},
        "checkpoint": {"keep": 1},
        "analysis": {"budget": "none"},  # the search for causes takes seconds, and has tests of its own
        "log": {"every_steps": 1},
        "tracking": {"finish_seconds": 300.0},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def runs(disk: Path) -> Iterator[Path]:
    """A place for the runs of a module, removed after its tests."""
    place = Path(tempfile.mkdtemp(dir=disk))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def launch(runs: Path, recipe: Path) -> Callable[..., Ranks]:
    """Starts a training: `launch(name, *words, size=1, pause=None)`, into the folder `name`; for `pause` see `start`."""

    def begin(name: str, *words: str, size: int = 1, pause: dict[str, Any] | None = None) -> Ranks:
        arguments = [str(recipe), f"run.dir={runs / name}", f"nproc={size}", *words]
        return start("vgg_ddp.train", arguments, size, runs / f"{name} output", pause)

    return begin


@pytest.fixture(scope="module")
def train(runs: Path, launch: Callable[..., Ranks]) -> Train:
    """Runs a training to its end and returns the run's folder: `train(name, *words, size=1)`."""

    def whole(name: str, *words: str, size: int = 1) -> Path:
        ranks = launch(name, *words, size=size)
        assert ranks.wait() == [0] * size, ranks.stderr
        return runs / name

    return whole


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """The cgroup.procs file of a control group with a quota of half a core."""
    for parent, quota in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        group = Path(parent) / f"vgg_ddp-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / quota).exists():
            (group / quota).write_text("50000" if quota == "cpu.cfs_quota_us" else "50000 100000")
            yield group / "cgroup.procs"
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control group can be made here")
