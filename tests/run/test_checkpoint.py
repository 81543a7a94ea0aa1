"""Checkpoints: the same bits back, or a refusal; whole or absent, whenever the writer is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.disks import disk_of
from tests.support.endless_writer import write_for_ever
from tests.support.rank_processes import Ranks, wait_until
from vgg_ddp.errors import Damaged, UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import Files, State
from vgg_ddp.run.directory import named


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: a file system on which a flush costs nothing."""
    shared = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else tmp_path))
    yield place
    shutil.rmtree(place)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """The dtype, shape and bytes of a tensor, which tell NaN and -0 apart too."""
    flat = tensor.detach().contiguous().flatten()
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    return {
        "features.0.weight": weight.contiguous(memory_format=torch.channels_last),
        "features.0.bias": torch.tensor([0.0, -0.0, torch.inf, torch.nan]),
        "half": weight.half(),
        "bf16": weight.bfloat16(),
        "turned": torch.arange(12.0).view(3, 4).t(),
        "part": torch.arange(100.0)[3::7],
        "num_batches_tracked": torch.tensor(2**40),
        "empty": torch.empty(0, 3),
    }


def some_files(step: int = 3) -> Files:
    tensors = some_tensors()
    return checkpoint.encode(tensors, {"features.0.weight/momentum_buffer": tensors["half"]}, State(step=step), None)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, average = some_tensors(), {"w": torch.randn(5)}
    files = checkpoint.encode(model, {"w/momentum_buffer": torch.ones(2)}, State(), average)
    found = checkpoint.read(checkpoint.write(tmp_path, files, 7))
    for name, expected in (("model", model), ("ema", average), ("optimizer", {"w/momentum_buffer": torch.ones(2)})):
        tensors = checkpoint.tensors(found, f"{name}.safetensors")
        assert {key: bits(value) for key, value in tensors.items()} == {k: bits(v) for k, v in expected.items()}
        theirs = load_file(tmp_path / "step-00000007" / f"{name}.safetensors")  # safetensors' own reader
        assert {key: bits(value) for key, value in theirs.items()} == {k: bits(v) for k, v in expected.items()}


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8]),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_any_array_comes_back_bit_for_bit(array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor = torch.from_numpy(array)
    files = checkpoint.unpack(checkpoint.pack(checkpoint.encode({"x": tensor}, {}, State(), None)))
    assert bits(checkpoint.tensors(files, "model.safetensors")["x"]) == bits(tensor)


@given(
    st.builds(
        State,
        step=st.integers(0, 2**53),
        epoch=st.integers(0, 10**6),
        totals=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        best_accuracy=st.floats(-1, 1),
        stopped=st.booleans(),
        seconds=st.floats(0, 1e9),
        engine=st.just({"scaler": {"scale": 65536.0, "_growth_tracker": 3}}),
        identity=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()),
        tracker_run_ids=st.dictionaries(st.text(), st.text()),
    )
)
def test_state_comes_back_equal(state: State) -> None:
    assert checkpoint.state(checkpoint.encode({}, {}, state, None)) == state


def test_every_file_is_safetensors_or_json(tmp_path: Path) -> None:
    """None is a pickle: other people's readers of these two formats read them all."""
    folder = checkpoint.write(tmp_path, some_files(), 3)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    for path in folder.iterdir():
        assert load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def positions(size: int, count: int, rng: random.Random) -> list[int]:
    """Positions of bits in a file: the first, the last, and some in between."""
    return sorted({0, 8 * size - 1, *(rng.randrange(8 * size) for _ in range(count - 2))})


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "ema.safetensors"])
def test_one_flipped_bit_is_refused(name: str, quick_disk: Path) -> None:
    files = checkpoint.encode({"x": torch.randn(100)}, {"x/m": torch.randn(100)}, State(), {"x": torch.randn(100)})
    folder = checkpoint.write(quick_disk, files, 1)
    for bit in positions(len(files[name]), 50, random.Random(name)):
        flip(folder / name, bit)
        with pytest.raises(UserError, match="damaged") as caught:
            checkpoint.read(folder)
        assert str(folder / name) in str(caught.value)
        flip(folder / name, bit)
    assert checkpoint.read(folder) == files


def test_any_flipped_bit_of_the_manifest_is_refused(quick_disk: Path) -> None:
    """It has no hash of its own, so here it is each single bit."""
    files = checkpoint.encode({"x": torch.ones(1)}, {}, State(), None)
    folder = checkpoint.write(quick_disk, files, 1)
    for bit in range(8 * len(files["manifest.json"])):
        flip(folder / "manifest.json", bit)
        with pytest.raises(UserError):
            checkpoint.read(folder)
        flip(folder / "manifest.json", bit)
    assert checkpoint.read(folder) == files


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_missing_or_cut_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, some_files(), 1)
    data = (folder / name).read_bytes()
    for cut in (data[:-1], data[: len(data) // 2], b""):
        (folder / name).write_bytes(cut)
        with pytest.raises(UserError) as caught:
            checkpoint.read(folder)
        assert str(folder) in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        checkpoint.read(folder)
    assert name in str(caught.value)


def test_manifest_cannot_leave_out_a_file(tmp_path: Path) -> None:
    """A checkpoint without weights is none, even if its hashes are right."""
    files = checkpoint.encode({"x": torch.ones(1)}, {}, State(), None)
    del files["model.safetensors"]
    folder = checkpoint.write(tmp_path, files, 1)
    with pytest.raises(UserError):
        checkpoint.tensors(checkpoint.read(folder), "model.safetensors")


def test_latest_names_the_newest(tmp_path: Path) -> None:
    for step in (3, 12):
        folder = checkpoint.write(tmp_path, some_files(step), step)
        assert (tmp_path / "latest").read_text() == folder.name == f"step-{step:08d}"


def test_the_same_step_is_written_anew(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, some_files(1), 5)
    files = some_files(2)
    folder = checkpoint.write(tmp_path, files, 5)
    assert checkpoint.read(folder) == files
    assert checkpoint.find(tmp_path) == [folder]


def test_nothing_is_left_beside_the_checkpoints(tmp_path: Path) -> None:
    """Not even what a killed writer left unfinished, whatever its step."""
    for left in (".writing-step-00000003", ".removing-step-00000001"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").touch()
    checkpoint.write(tmp_path, some_files(), 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]


@pytest.mark.parametrize("again", [False, True])
def test_what_gets_its_name_is_on_the_disk(again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are synced before the folder gets its name, its parent folder afterwards: power may fail at any time."""
    files = checkpoint.encode({"w": torch.ones(2)}, {}, State(step=3), None)
    if again:
        checkpoint.write(tmp_path, files, 3)
    done: list[tuple[str, str]] = []

    def noted(what: str, function: Callable[..., Any], name: Callable[[Any], str]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done.append((what, name(arguments[0])))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("flush", os.fsync, lambda number: os.readlink(f"/proc/self/fd/{number}")))
    for module, function in ((os, "rename"), (os, "replace"), (checkpoint, "exchange")):
        monkeypatch.setattr(module, function, noted("name", getattr(module, function), str))
    folder = checkpoint.write(tmp_path, files, 3)
    aside = str(tmp_path / f".writing-{folder.name}")
    named, pointed = (done.index(("name", name)) for name in (aside, str(tmp_path / ".latest.writing")))
    assert {name for what, name in done[:named] if what == "flush"} == {f"{aside}/{name}" for name in files}
    assert ("flush", str(tmp_path)) in done[named:pointed]
    assert ("flush", str(tmp_path / ".latest.writing")) in done[:pointed]
    assert ("flush", str(tmp_path)) in done[pointed:]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        folder = checkpoint.write(tmp_path, some_files(step), step)
        if step == 2:
            checkpoint.mark_best(tmp_path, folder)
    checkpoint.prune(tmp_path, 2, folder)
    assert [folder.name for folder in checkpoint.find(tmp_path)] == ["step-00000006", "step-00000005", "step-00000002"]
    assert (tmp_path / "best").read_text() == "step-00000002"
    checkpoint.read(tmp_path / "step-00000002")
    checkpoint.mark_best(tmp_path, tmp_path / "step-00000006")
    checkpoint.prune(tmp_path, 1, folder)
    assert [folder.name for folder in checkpoint.find(tmp_path)] == ["step-00000006"]


def test_read_newest_passes_over_what_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, some_files(step), step)
    flip(tmp_path / "step-00000003" / "model.safetensors", 1000)
    (tmp_path / "step-00000002" / "state.json").unlink()
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    folder, files, problems = found
    assert folder.name == "step-00000001"
    assert files == some_files(1)
    assert ["step-00000003" in problems[0], "step-00000002" in problems[1]] == [True, True]


def test_read_newest_of_nothing_is_none_and_of_ruins_is_refused(tmp_path: Path) -> None:
    assert checkpoint.read_newest(tmp_path) is None
    folder = checkpoint.write(tmp_path, some_files(), 1)
    flip(folder / "model.safetensors", 0)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.read_newest(tmp_path)


@pytest.mark.processes
@pytest.mark.parametrize(("keep", "same_step"), [(1, False), (2, False), (1, True)])
def test_a_killed_writer_leaves_whole_checkpoints_and_the_last_one_it_finished(
    keep: int, same_step: bool, quick_disk: Path, tmp_path: Path
) -> None:
    rng = random.Random(keep)
    for attempt in range(12):
        folder = quick_disk / str(attempt)
        folder.mkdir()
        writer = Ranks(write_for_ever, (folder, keep, same_step), 1, tmp_path / "output")
        wait_until(lambda writer=writer: "\n" in writer.stdout, writer)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.05))
        writer.send(signal.SIGKILL)
        writer.wait()
        finished = len(writer.stdout.splitlines())
        found = checkpoint.read_newest(folder)
        assert found is not None, f"no checkpoint is left after {finished}"
        _, files, problems = found
        assert not problems
        for other in checkpoint.find(folder):
            checkpoint.read(other)  # each folder under a checkpoint's name is whole
        assert int(files["model.safetensors"].split()[0]) >= finished
        assert checkpoint.read(folder / (folder / "latest").read_text())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("1m", tmp_path / "disk") as place:
        yield place


def test_a_full_disk_is_told_and_leaves_the_previous_checkpoint(tiny_disk: Path) -> None:
    def files(step: int) -> Files:
        return checkpoint.encode({"x": torch.full((100_000,), float(step))}, {}, State(step=step), None)

    checkpoint.write(tiny_disk, files(1), 1)
    checkpoint.write(tiny_disk, files(2), 2)
    for step in (2, 3):  # the same step again, and the next
        with pytest.raises(UserError, match="No space left"):
            checkpoint.write(tiny_disk, files(step), step)
        assert (tiny_disk / "latest").read_text() == "step-00000002"
        assert sorted(p.name for p in tiny_disk.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    found = checkpoint.read_newest(tiny_disk)
    assert found is not None
    assert found[1] == files(2)
    assert not found[2]


def test_a_damaged_later_checkpoint_does_not_cost_the_one_just_written(tmp_path: Path) -> None:
    """Continued from step 1, since step 5 is damaged: what is written next is kept, however few are."""
    checkpoint.write(tmp_path, some_files(5), 5)
    folder = checkpoint.write(tmp_path, some_files(2), 2)
    checkpoint.prune(tmp_path, 1, folder)
    assert checkpoint.find(tmp_path) == [tmp_path / "step-00000005", folder]
    assert named(tmp_path, "latest") == folder


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-00000099").write_text("")
    (tmp_path / "step-abcdefgh").mkdir()
    hundred_million = checkpoint.write(tmp_path, some_files(), 10**8)
    folder = checkpoint.write(tmp_path, some_files(), 5)
    assert checkpoint.find(tmp_path) == [hundred_million, folder]


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/etc", "step-00000001/..", "step-1", "", "\u0000", "step-0000000\u0661"]
)
def test_latest_names_a_checkpoint_of_the_run_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(name)
    with pytest.raises(Damaged, match="names no checkpoint"):
        named(tmp_path, "latest")


@pytest.mark.parametrize(
    "hashes",
    [{}, {"model.safetensors": ""}, dict.fromkeys((*checkpoint.NAMES, "../state.json"), "")],
    ids=["none", "one", "another"],
)
def test_a_manifest_lists_the_files_of_a_checkpoint(hashes: dict[str, str], tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, some_files(), 1)
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    with pytest.raises(Damaged, match="has a manifest of"):
        checkpoint.read(folder)


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, some_files(), 1)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(Damaged, match="more than this machine's memory"):
        checkpoint.read(folder)
