"""Starts real ranks and commands quickly: processes forked from one that has imported everything.

A rank forked here has torchrun's environment and runs the same `main` as under torchrun, over gloo, with its own signals,
exit code and output; forking saves the seconds that each would take to import torch.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from vgg_ddp.distributed.devices import Devices

Launch = Callable[..., "Ranks"]  # the fixture `launch`
Train = Callable[..., Path]  # the fixture `train`
CPU = Devices(device="cpu")  # what all tests but those in tests/gpu pass to `joined`
TIMEOUT = 600.0  # seconds; far more than any run here takes on any machine: only ends runs that hang

CLONE_NEWNET = 0x40000000  # <linux/sched.h>

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "vgg_ddp.train",
        "vgg_ddp.engines.split_head",
        "torch._dynamo",  # which torch imports with the first DistributedDataParallel
        "vgg_ddp.loaders.dali",
        "vgg_ddp.loaders.torch_loader",
        "vgg_ddp.cli",
        "vgg_ddp.data.prepare",
        "vgg_ddp.evaluate",
        "vgg_ddp.report",
        "benchmarks.measurement.step",
        "benchmarks.measurement.command",
        "matplotlib.pyplot",
        "torchvision",
        "deepspeed.runtime.engine",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # which its engine imports, and with it torch's compiler
        "scipy.cluster.hierarchy",
        "scipy.stats",
        "sklearn.metrics",
        "pytest",
        "tests.support.warm",
    ]
)


class Ranks:
    """Ranks of one launch that run `function(*arguments)`.

    Unless `warm`, in new processes: CUDA does not work if a library initialised it before the fork.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], size: int, output: Path, warm: bool = True
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self._output, self._size = output, size
        for left in output.iterdir():  # from an earlier launch
            left.unlink()
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent does
        self.processes = []
        for rank in range(size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
            started = (function, arguments, environment, output / str(rank))
            process = context(warm).Process(target=_enter, args=started)  # type: ignore[attr-defined]
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int]:
        """The exit codes by rank. A launch that hangs is killed, and fails the test."""
        deadline = time.monotonic() + TIMEOUT
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [process for process in self.processes if process.exitcode is None]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"{len(hung)} ranks hung\n{self.stderr}"
        return [process.exitcode for process in self.processes]  # type: ignore[misc]

    def send(self, number: int, rank: int = 0) -> None:
        os.kill(self.processes[rank].pid, number)  # type: ignore[arg-type]

    def paused(self) -> bool:
        """Whether rank 0 has reached the row after which it was to pause (see `start`)."""
        stat = Path(f"/proc/{self.processes[0].pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    @property
    def stdout(self) -> str:
        return self._read("out")

    @property
    def stderr(self) -> str:
        return self._read("err")

    def _read(self, kind: str) -> str:
        files = [self._output / f"{rank}.{kind}" for rank in range(self._size)]
        return "".join(file.read_text() for file in files if file.exists())


def start(
    module: str,
    arguments: list[str],
    size: int,
    output: Path,
    pause: dict[str, Any] | None = None,
    warm: bool = True,
) -> Ranks:
    """`torchrun --nproc-per-node SIZE -m MODULE ARGUMENTS`, forked.

    Rank 0 stops, as by Ctrl-Z, once it has logged a row of metrics with the values of `pause` and what it is saving is on
    the disk, until it gets SIGCONT.
    """
    return Ranks(_main, (module, arguments, pause), size, output, warm)


def step(number: int) -> dict[str, Any]:
    """The values of a step's row, to pause after it."""
    return {"scope": "steps", "step": number}


def vgg_ddp(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `vgg-ddp ARGUMENTS` in `folder`, forked, to its end, with additional environment variables."""
    return program("vgg_ddp", *arguments, folder=folder, **variables)


def program(module: str, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in `folder`, forked, to its end, with additional environment variables."""
    command = Command(module, *arguments, folder=folder, **variables)
    out, err = command.communicate(TIMEOUT)
    return subprocess.CompletedProcess([module, *arguments], command.returncode or 0, out, err)


class Command:
    """`python -m MODULE ARGUMENTS` in `folder`, forked, with additional variables; used like a `subprocess.Popen`.

    Args:
        namespace: the network namespace to run in.
    """

    def __init__(
        self, module: str, *arguments: str, folder: Path, namespace: str | None = None, **variables: str
    ) -> None:
        self._output = Path(tempfile.mkdtemp()) / "command"
        self._said: tuple[str, str] | None = None
        started = (_program, (module, arguments, folder, namespace), variables, self._output)
        self._process = _context.Process(target=_enter, args=started)
        self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to stdout and stderr, once it has ended; after `timeout` seconds it is killed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        if self._said is None:
            out, err = (self._output.with_suffix(f".{kind}").read_text() for kind in ("out", "err"))
            self._said = out, err
            shutil.rmtree(self._output.parent)
        return self._said


def context(warm: bool) -> multiprocessing.context.BaseContext:
    """The start method of a process: forked from the warm one, or new."""
    return _context if warm else multiprocessing.get_context("spawn")


def apart(function: Callable[..., Any], *arguments: Any, warm: bool = True) -> Any:
    """What `function(*arguments)` returns or raises in a separate process; if that dies, a BrokenProcessPool."""
    with ProcessPoolExecutor(1, mp_context=context(warm)) as process:
        return process.submit(function, *arguments).result(TIMEOUT)


def _program(module: str, arguments: tuple[str, ...], folder: Path, namespace: str | None) -> None:
    if namespace is not None:
        with Path("/run/netns", namespace).open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"network namespace {namespace} cannot be entered")
    os.chdir(folder)
    sys.path.insert(0, "")
    sys.argv = [module.replace("_", "-"), *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _main(module: str, arguments: list[str], pause: dict[str, Any] | None) -> int:
    if pause:
        _pause_after(pause)
    return int(importlib.import_module(module).main(arguments))


def _pause_after(values: dict[str, Any]) -> None:
    from vgg_ddp.run.metrics_log import MetricsLog
    from vgg_ddp.training.saving import THREAD

    write = MetricsLog.write

    def write_and_pause(log: MetricsLog, row: dict[str, Any]) -> None:
        write(log, row)
        if values.items() <= row.items():
            for thread in threading.enumerate():
                if thread.name.startswith(THREAD):
                    thread.join()
            os.kill(os.getpid(), signal.SIGSTOP)

    MetricsLog.write = write_and_pause  # type: ignore[method-assign]


def _enter(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    for descriptor, kind in ((1, "out"), (2, "err")):
        file = os.open(output.with_suffix(f".{kind}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    sys.exit(function(*arguments))


def wait_until(condition: Callable[[], bool], ranks: Ranks) -> None:
    """Poll at short intervals while the ranks live."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"the wait timed out\n{ranks.stderr}"
        if not ranks.alive():
            assert condition(), f"the ranks ended first: {ranks.wait()}\n{ranks.stderr}"
        time.sleep(0.002)
