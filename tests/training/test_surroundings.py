"""A training in unusual surroundings: variables of other ranks, output that nobody reads, no signals, no home."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.rank_processes import Launch, Ranks, vgg_ddp
from tests.support.run_folders import state
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.model import ModelConfig
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.distributed import world
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.report import error_table
from vgg_ddp.run import console

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]
READING = "dac_read_search"  # a capability of root's


def test_variables_of_other_ranks_are_left_aside(recipe: Path, runs: Path) -> None:
    words = ["train", str(recipe), f"run.dir={runs / 'left over'}", "min_steps=1"]
    left = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777"}
    done = vgg_ddp(*words, folder=runs, **left)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("RANK=1 WORLD_SIZE=4 in the environment left aside: ranks are started here")


def test_what_begins_after_the_training_s_end_is_told(launch: Launch) -> None:
    late = [
        "schedule.warmup_epochs=2",
        "augment.cutout=4",
        "augment.strong_epochs=[6,8]",
        "schedule.name=step",
        "schedule.milestones=[0.1,7]",
    ]
    ranks = launch("too late", *late, "min_steps=5")
    assert ranks.wait() == [0], ranks.stderr
    told = [line for line in ranks.stdout.splitlines() if "has no effect" in line or "warm-up" in line]
    assert told == [
        "augment.strong_epochs: epoch 6 has no effect, the training has 0.5 epochs",
        "schedule.milestones: epoch 7 has no effect, the training has 0.5 epochs",
        "schedule.warmup_epochs=2: the training ends within the warm-up",
    ]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "one"}, "RANK=one in the environment is no number"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK=3 and WORLD_SIZE=3 in the environment name no rank"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "29777"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "99999"),
    ],
)
def test_variables_that_name_no_rank_are_one_line(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught, world.joined():
        pass
    assert told in str(caught.value) and "start ranks with vgg-ddp train or torchrun" in str(caught.value)


def test_a_wait_for_other_ranks_is_told_and_hears_signals(runs: Path) -> None:
    ranks = Ranks(_meet_nobody, (), 1, runs / "alone output")
    assert ranks.wait() == [128 + 2], ranks.stderr  # as by Ctrl-C
    line, stopped = ranks.stderr.splitlines()
    assert line.startswith("vgg-ddp: rank 0 waits at 127.0.0.1:") and line.endswith("for the others of WORLD_SIZE=2")
    assert stopped == "vgg-ddp: stopped by SIGINT before the first step; nothing to save"


def _meet_nobody() -> int:
    import signal

    from vgg_ddp.distributed import rank_process
    from vgg_ddp.distributed.devices import Devices

    world.SECONDS_BEFORE_WORD = 0.1
    os.environ |= {"WORLD_SIZE": "2", "MASTER_PORT": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    said = console.complain

    def interrupt(text: str) -> None:
        said(text)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    world.complain = interrupt  # type: ignore[attr-defined]
    return rank_process.run(lambda joined: None, Devices(device="cpu"))


@pytest.mark.parametrize("place", ["full", "gone"])
def test_a_training_goes_on_unseen(place: str, recipe: Path, runs: Path) -> None:
    words = [str(recipe), f"run.dir={runs / place}", "min_steps=2"]
    ranks = Ranks(_unseen, (place, words), 1, runs / f"{place} output")
    assert ranks.wait() == [0], ranks.stderr
    assert state(runs / place)["step"] == 2
    assert (runs / place / "report" / "index.html").is_file()


def _unseen(place: str, words: list[str]) -> int:
    if place == "full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    os.dup2(output, 1)
    from vgg_ddp import train

    code = train.main(words)
    sys.stdout.flush()  # as the interpreter does at its end
    return code


def test_a_terminal_without_a_letter_shows_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        console.say("größe")
        console.table("Ergebnis", ["Größe", "Bilder"], [["ü", "1"]])
    text = (tmp_path / "out").read_bytes()
    assert text.startswith(b"gr??e\n") and b"Gr??e" in text


def test_a_narrow_terminal_shows_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console._console, "_width", 20)
    console.table("accuracy", ["class", "images", "accuracy"], [["a long name", "1000", "97.3%"]])
    assert capsys.readouterr().out.splitlines() == ["accuracy", "class images accuracy", "a long name 1000 97.3%"]
    wide = [["a run", "vgg16_bn", "[256;512]", "256,384,512", "dense & crops", "12.34", "1.23"]]
    for width, drawn in ((78, False), (79, True)):
        monkeypatch.setattr(console._console, "_width", width)
        console.table("", error_table.ON_SCREEN, wide)
        lines = capsys.readouterr().out.splitlines()
        assert any("┃" in line for line in lines) is drawn
        assert all(cell in lines[-2 if drawn else -1] for cell in wide[0]), lines


def test_a_call_returns_also_in_a_thread(recipe: Path, runs: Path) -> None:
    ranks = Ranks(_in_a_thread, (["train", str(recipe), f"run.dir={runs / 'thread'}", "min_steps=2"],), 1, runs / "out")
    assert ranks.wait() == [0], ranks.stderr
    assert state(runs / "thread")["step"] == 2


def _in_a_thread(words: list[str]) -> int:
    from vgg_ddp import cli

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(words)))
    thread.start()
    thread.join()
    return codes[0] or [cli.main(["--version"]), cli.main(["trian"]) - EXIT_USER_ERROR][0]


def test_one_image_at_a_time_is_refused_where_it_has_no_variance() -> None:
    small = DataConfig(image_size=16)
    for config, ranks in ((Config(batch=1, data=small), 1), (Config(batch=4, accumulation=2, data=small), 2)):
        with pytest.raises(UserError, match="one image at a time"):
            config.local_batch(ranks)
    half = Config(batch=16, data=small, loss=LossConfig(hardest=0.5))  # half of the images are trained on
    assert half.local_batch(4) == 4
    with pytest.raises(UserError, match=r"batch=16 with loss\.hardest=0\.5 is one image at a time"):
        half.local_batch(8)
    assert Config(batch=1).local_batch(1) == 1
    assert Config(batch=2, data=small, model=ModelConfig(sync_batch_norm=True)).local_batch(2) == 1
    assert Config(batch=1, data=small, model=ModelConfig(batch_norm=False)).local_batch(1) == 1


@pytest.mark.host
def test_the_quickstart_in_a_small_container(tmp_path: Path, half_a_core: Path, digits: Path) -> None:
    """64 MB of shared memory, half a core, a user with no name or home, others' code, a C locale, rank variables."""
    if os.getuid() != 0:
        pytest.skip("only root can mount, and become another user")
    user, place = 54321, tmp_path / "place"
    with pytest.raises(KeyError):
        pwd.getpwuid(user)
    shutil.copytree(digits, place / "datasets/digits")
    for path in (tmp_path, *place.rglob("*"), place):
        os.chown(path, user, user)
    variables = {
        "HOME": "/proc",
        "LC_ALL": "C",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "PATH": os.defpath,
        "PYTHONPATH": str(ROOT),
    }
    contained = (
        f"mount -t tmpfs -o size=64m tmpfs /dev/shm && chmod 1777 /dev/shm && echo 0 > {half_a_core} && "
        # May read what only root can, since Python itself may be installed there.
        f"exec setpriv --reuid={user} --regid={user} --clear-groups --inh-caps=+{READING} --ambient-caps=+{READING} "
        '"$@"'
    )
    words = [
        "configs/quickstart.yaml",
        "data.source=digits",
        "batch=16",
        "min_steps_per_epoch=0",
        "epochs=1e-9",
        "min_steps=2",
        "analysis.budget=small",
    ]
    command = [sys.executable, "-m", "vgg_ddp", "train", str(ROOT / words[0]), *words[1:], "run.dir=run"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", contained, "sh", *command],
        cwd=place, env=variables, capture_output=True, text=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("RANK=1 WORLD_SIZE=4 in the environment left aside")
    assert "1 CPU thread each" in lines[0]
    cores = f"cores: 1 of {len(os.sched_getaffinity(0))}, as many as the CPU quota of this control group allows"
    assert cores in lines or len(os.sched_getaffinity(0)) == 1
    assert lines[-1] == "report: run/report/index.html"
    assert (place / "run/report/index.html").stat().st_uid == user
