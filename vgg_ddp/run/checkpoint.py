"""Checkpoints: whole or absent, with their own hashes, loadable into any engine and world size.

RUN/checkpoints/step-XXXXXXXX/ holds model.safetensors (parameters and buffers), optimizer.safetensors (by parameter name),
ema.safetensors where weights are averaged, state.json (everything else; see `State`) and manifest.json (the sha256 of
each). A checkpoint is written aside, flushed to disk, and renamed into place; nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vgg_ddp.errors import UserError
from vgg_ddp.run.files import exchange, replace_file, sync_directory, write_durably

Files = dict[str, bytes]


class State(msgspec.Struct, kw_only=True):
    """Everything of a training's state that is not a tensor. This is the one list of it.

    There is no random state: every random number follows from (seed, position).

    Attributes:
        step: optimizer steps done.
        epoch, step_in_epoch: position in the order: the next step to take.
        totals: loss sum, correct and count of the epoch so far over all ranks, for its mean.
        best_accuracy, best_epoch: the best validation accuracy so far (-1 for none) and when it was reached.
        stopped: whether the stopping rule has ended the training.
        seconds: training seconds so far, evaluation on the validation split included.
        step_seconds, wait_seconds: of which in steps, and waiting for data.
        engine: the engine's values that are not tensors.
        identity: values by configuration key that must be the same in a resumed run.
        tracker_run_ids: the ids under which trackers know this run.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    totals: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0, 0.0])
    best_accuracy: float = -1.0
    best_epoch: int = 0
    stopped: bool = False
    seconds: float = 0.0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    engine: dict[str, Any] = msgspec.field(default_factory=dict)
    identity: dict[str, Any] = msgspec.field(default_factory=dict)
    tracker_run_ids: dict[str, str] = msgspec.field(default_factory=dict)


def encode(
    model: dict[str, Tensor], optimizer: dict[str, Tensor], state: State, ema: dict[str, Tensor] | None
) -> Files:
    """The files of a checkpoint, manifest last."""
    files = {
        "model.safetensors": _save_tensors(model),
        "optimizer.safetensors": _save_tensors(optimizer),
        "state.json": msgspec.json.format(msgspec.json.encode(state), indent=2),
    }
    if ema is not None:
        files["ema.safetensors"] = _save_tensors(ema)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["manifest.json"] = msgspec.json.format(msgspec.json.encode({"sha256": hashes}), indent=2)
    return files


def _save_tensors(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def write(directory: Path, files: Files, step: int) -> Path:
    """Write a checkpoint into RUN/checkpoints and point `latest` at it; returns its folder.

    Raises:
        UserError: no space or no right to write; what was there before stays as it was.
    """
    final = directory / f"step-{step:08d}"
    aside = directory / f".writing-{final.name}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, data in files.items():
            write_durably(aside / name, data)
        exchange(aside, final) if final.exists() else os.rename(aside, final)
        shutil.rmtree(aside, ignore_errors=True)  # the same step, saved before
        sync_directory(directory)
        replace_file(directory / "latest", final.name.encode())
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"checkpoint {final} cannot be written: {error.strerror}; free space there or set run.dir"
        ) from None
    return final


def mark_best(directory: Path, checkpoint: Path) -> None:
    """Point `best` in RUN/checkpoints at `checkpoint`."""
    replace_file(directory / "best", checkpoint.name.encode())


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    best = directory / "best"
    kept = {best.read_text()} if best.is_file() else set()
    for old in find(directory)[keep:]:
        if old.name not in kept:
            _remove(old)


def _remove(folder: Path) -> None:
    """Remove a checkpoint if it is there: renamed first, so that a crash never leaves an incomplete one under its name."""
    aside = folder.with_name(f".removing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
        shutil.rmtree(aside)


def find(directory: Path) -> list[Path]:
    """The checkpoints in RUN/checkpoints, newest first."""
    return sorted(directory.glob("step-????????"), reverse=True)


def read(checkpoint: Path) -> Files:
    """The files of a checkpoint, each equal to its hash.

    Raises:
        UserError: naming what is missing or differs.
    """
    try:
        manifest = (checkpoint / "manifest.json").read_bytes()
        hashes = msgspec.json.decode(manifest, type=dict[str, dict[str, str]])["sha256"]
        files = {name: (checkpoint / name).read_bytes() for name in hashes}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"checkpoint {checkpoint} is not whole: {error}; take another one") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise UserError(f"checkpoint {checkpoint / name} is damaged: its sha256 differs; take another one")
    files["manifest.json"] = manifest
    return files


def read_newest(directory: Path) -> tuple[Path, Files, list[str]] | None:
    """The newest whole checkpoint, with what was passed over on the way; None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    problems: list[str] = []
    for checkpoint in find(directory):
        try:
            return checkpoint, read(checkpoint), problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"no checkpoint in {directory} is whole; the newest: {problems[0]}")
    return None


def tensors(files: Files, name: str) -> dict[str, Tensor]:
    """The tensors in the file `name` of a checkpoint.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return safetensors.torch.load(files[name])
    except (SafetensorError, KeyError) as error:
        raise UserError(f"checkpoint file {name} cannot be read: {error}") from None


def state(files: Files) -> State:
    """The state in a checkpoint's files.

    Raises:
        UserError: it is missing or cannot be decoded.
    """
    try:
        return msgspec.json.decode(files["state.json"], type=State)
    except (msgspec.DecodeError, KeyError) as error:
        raise UserError(f"checkpoint file state.json cannot be read: {error}") from None


def check_identity(found: State, wanted: dict[str, Any], where: Path) -> None:
    """Raises a `UserError` naming the first key in which a checkpoint and this training differ."""
    for key, value in wanted.items():
        if found.identity.get(key) != value:
            raise UserError(
                f"{where} was made with {key}={found.identity.get(key)}, not {value}; set it so, or choose another run.dir"
            )


def pack(files: Files) -> bytes:
    """Files as one run of bytes, to send to other ranks."""
    return msgspec.msgpack.encode(files)


def unpack(data: bytes) -> Files:
    """The files that `pack` made `data` of."""
    return msgspec.msgpack.decode(data, type=Files)
