"""Malformed input, made by mutation: one line of error in time, and nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import signal
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.chaos.conftest import Begin
from tests.support.pictures import encode, smooth
from tests.support.rank_processes import apart
from vgg_ddp import cli
from vgg_ddp.config import Config, dump, load
from vgg_ddp.data.conversion import Policy
from vgg_ddp.data.prepare import prepare
from vgg_ddp.errors import UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State

pytestmark = pytest.mark.processes

SECONDS, BYTES = 10, 2 * 2**30  # limits: seconds per input, and bytes of memory in total
NASTY = (
    b"", b"\0", b"-1", b"null", b"1e999", b"nan", b"{}", b"[]", b"[[[[", b": ", b"\xff\xfe", b"!!python/object:os.system",
    b"&a [*a, *a]", b"%00", b"../../..", b"/", b"~", b"a" * 5000, b"\x1b[2J", b"-", b"--", b"=", b"\n", b"2**64", b"'", b'"',
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bytes cut off, removed, duplicated, or replaced by random or nasty ones."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([0, 1, 4, 40]))
        data = rng.choice(
            [
                data[:start],
                data[:start] + data[end:],
                data[:end] + data[start:],
                data[:start] + rng.choice(NASTY) + data[end:],
                data[:start] + rng.randbytes(end - start) + data[end:],
            ]
        )
    return data


def configurations(rng: random.Random, place: Path) -> None:
    (place / "config.yaml").write_bytes(mutated(dump(Config()).encode(), rng))
    load(place / "config.yaml", [])


def command_lines(rng: random.Random, place: Path) -> None:
    """Command lines none of which can train: both the run and the data are missing."""
    (place / "config.yaml").write_text("data: {source: missing}\nrun: {dir: run}\ndevice: cpu\n")
    words = rng.choice(
        [
            ["train", "config.yaml", "batch=8", "nproc=1"],
            ["train", "--help"],
            ["prepare", "missing", "--out", "prepared", "--quality", "90"],
            ["evaluate", "run", "--images", "photos", "--out", "answers"],
            ["report", "run", "run", "--out", "page.html"],
            ["verify", "run"],
            ["export", "run", "--format", "onnx", "--out", "network.onnx"],
            ["dashboard", "--dry-run"],
            ["launch", "slurm", "config.yaml", "--nodes", "2", "--gpus-per-node", "8", "--dry-run"],
        ]
    )
    number = rng.randrange(len(words))
    text = mutated(words[number].encode(), rng).replace(b"\0", b"0").decode(errors="surrogateescape")
    words = [*words[:number], text, *words[number + rng.randrange(2) :]]
    if words[:1] == ["train"] and not {"config.yaml", "--help"} & set(words):
        words += ["data.source=missing"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(words)
    if code not in (0, 2) or (code == 2 and not said.getvalue().strip()):
        raise AssertionError(f"{words}: {code}, {said.getvalue()!r}")


def pictures(rng: random.Random, place: Path) -> None:
    kind, suffix = rng.choice(
        [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("GIF", "gif"), ("BMP", "bmp")]
    )
    for number in range(6):
        file = place / f"set/{('train', 'test')[number // 4]}/{number % 2}/{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        data = encode(smooth(16, 16, number), kind)
        file.write_bytes(mutated(data, rng) if number == 0 else data)
    prepare(str(place / "set"), place / "made", lambda line: None, place, policy=Policy(rng.choice(["refuse", "drop"])))


def archives(rng: random.Random, place: Path) -> None:
    packed = io.BytesIO()
    files = {f"{s}/{c}/{n}.jpg": encode(smooth(16, 16, n)) for n, (s, c) in enumerate(SETS)}
    suffix = rng.choice(["tar", "tar.gz", "tar.xz", "zip"])
    if suffix == "zip":
        with zipfile.ZipFile(packed, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=packed, mode=f"w:{suffix.partition('.')[2]}") as tar:  # type: ignore[call-overload]
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = place / f"set.{suffix}"
    source.write_bytes(mutated(packed.getvalue(), rng))
    prepare(str(source), place / "made", lambda line: None, place)


SETS = [(split, label) for split in ("train", "test") for label in "ab" for _ in range(2)]


def checkpoints(rng: random.Random, place: Path) -> None:
    """A mutated checkpoint whose hashes are right."""
    weights = {"w": torch.arange(20.0)}
    files = checkpoint.encode(weights, {"w/momentum_buffer": weights["w"]}, State(step=3), weights)
    name = rng.choice(list(files))
    files[name] = mutated(files[name], rng)
    if name != "manifest.json":
        manifest = json.loads(files["manifest.json"])
        manifest["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
    for file, data in files.items():
        (place / file).write_bytes(data)
    read = checkpoint.read(place)
    checkpoint.state(read)
    for file in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        checkpoint.tensors(read, file)


KINDS = {kind.__name__: kind for kind in (configurations, command_lines, pictures, archives, checkpoints)}


def problems(kind: str, seed: str, count: int, place: Path) -> list[str]:
    """What went wrong in `count` tries, all of them in this process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = []
    for number in range(count):
        inside = place / "outside" / "inside"
        inside.mkdir(parents=True)
        (place / "outside/canary").write_text("left alone")
        os.chdir(inside)
        signal.alarm(SECONDS)
        try:
            with contextlib.suppress(UserError):
                KINDS[kind](random.Random(f"{kind} {seed} {number}"), inside)
        except BaseException:
            found.append(f"{kind} {seed} {number}: {traceback.format_exc()[-1500:]}")
        finally:
            signal.alarm(0)
        os.chdir(place)
        if names(place) - {"outside", "outside/canary", "outside/inside"} or names(place, "canary") != {
            "outside/canary"
        }:
            found.append(f"{kind} {seed} {number}: it has written to {names(place)}")
        remove(place / "outside")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return found + ([f"{kind} {seed}: {used:,} bytes of memory"] if used > BYTES else [])


def too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def names(place: Path, pattern: str = "*") -> set[str]:
    """The names below `place`, except those below `inside`."""
    return {str(path.relative_to(place)) for path in place.rglob(pattern) if "inside/" not in str(path)}


def remove(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    place.rmdir()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", list(KINDS))
def test_malformed(kind: str, tries: Begin, place: Path, request: pytest.FixtureRequest) -> None:
    tried = tries(f"malformed {kind.replace('_', ' ')}", 20, 400)
    for problem in apart(problems, kind, request.config.getoption("--chaos-seed"), tried.count, place):
        tried.check(False, problem)
