"""Checkpoints: whole or absent, with their own hashes, loadable into any engine and world size.

RUN/checkpoints/step-XXXXXXXX/ holds model.safetensors (parameters and buffers), optimizer.safetensors (by parameter name),
ema.safetensors where weights are averaged, answers.safetensors in mid-epoch (see `vgg_ddp.training.answers`), state.json
(everything else; see `State`) and manifest.json (the sha256 of each). A checkpoint is written aside, flushed to disk, and
renamed into place; nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vgg_ddp.errors import Damaged, Unwritten, UserError
from vgg_ddp.run.directory import is_checkpoint_name, named
from vgg_ddp.run.files import exchange, recover_exchanged, replace_file, sync_directory, write_durably

Files = dict[str, bytes]
NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")  # of every checkpoint
ANSWERS = "answers.safetensors"
OPTIONAL_NAMES = ("ema.safetensors", ANSWERS)
# Identity keys that earlier checkpoints lack, and the values that they were made with.
ADDED_IDENTITY = {
    "data.normalisation": "data",
    "data.train_share": 1.0,
    "optimizer.features_rate": "above 0",
    "model.activation": "relu",
    "model.pool_before_norm": False,
    "model.logit_scale": 1.0,
    "model.norm_scale": True,
    "model.whiten": False,
}
# Identity keys that earlier checkpoints lack, and that may have had any value.
KEPT_LATER = ("data.split_seed", "data.balance_classes")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class State(msgspec.Struct, kw_only=True):
    """Everything of a training's state that is not a tensor. This is the one list of it.

    There is no random state: every random number follows from (seed, position).

    Attributes:
        step: optimizer steps done.
        epoch, step_in_epoch: position in the order: the next step to take.
        totals: loss sum, correct and count of the epoch so far over all ranks, for its mean.
        best_accuracy, best_epoch: the best validation accuracy so far (-1 for none) and when it was reached.
        accuracies: of every validation so far, oldest first; 0 where the loss was not finite.
        stopped: whether the stopping rule has ended the training.
        full_size_steps: steps since images were last shrunk (`data.train_sizes`), or since the first; None where a checkpoint
            of an earlier version does not say.
        seconds: training seconds so far, evaluation on the validation split included.
        step_seconds, wait_seconds: of which in steps, and waiting for data.
        engine: the engine's values that are not tensors.
        identity: values by configuration key that must be the same in a resumed run.
        tracker_run_ids: the ids under which trackers know this run.
    """

    step: Count = 0
    epoch: Count = 0
    step_in_epoch: Count = 0
    totals: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)] = msgspec.field(
        default_factory=lambda: [0.0, 0.0, 0.0]
    )
    best_accuracy: Annotated[float, msgspec.Meta(ge=-1, le=1)] = -1.0
    best_epoch: Count = 0
    accuracies: list[Annotated[float, msgspec.Meta(ge=0, le=1)]] = msgspec.field(default_factory=list)
    stopped: bool = False
    full_size_steps: Count | None = None
    seconds: Seconds = 0.0
    step_seconds: Seconds = 0.0
    wait_seconds: Seconds = 0.0
    engine: dict[str, int | float | dict[str, int | float]] = msgspec.field(default_factory=dict)
    identity: dict[str, Any] = msgspec.field(default_factory=dict)
    tracker_run_ids: dict[str, str] = msgspec.field(default_factory=dict)

    def step_taken(self, shrunk: bool) -> None:
        """Count a step that was taken, on images that had been shrunk or not."""
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1
        if shrunk:
            self.full_size_steps = 0
        elif self.full_size_steps is not None:
            self.full_size_steps += 1


def encode(
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: State,
    ema: dict[str, Tensor] | None,
    answers: Tensor | None = None,
) -> Files:
    """The files of a checkpoint, manifest last."""
    files = {
        "model.safetensors": _save_tensors(model),
        "optimizer.safetensors": _save_tensors(optimizer),
        "state.json": msgspec.json.format(msgspec.json.encode(state), indent=2),
    }
    if ema is not None:
        files["ema.safetensors"] = _save_tensors(ema)
    if answers is not None:
        files[ANSWERS] = _save_tensors({"answers": answers})
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["manifest.json"] = msgspec.json.format(msgspec.json.encode({"sha256": hashes}), indent=2)
    return files


def _save_tensors(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def write(directory: Path, files: Files, step: int) -> Path:
    """Write a checkpoint into RUN/checkpoints and point `latest` at it; returns its folder.

    Raises:
        Unwritten: no space or no right to write; what was there before stays as it was.
    """
    final = directory / f"step-{step:08d}"
    aside = directory / f".writing-{final.name}"
    try:
        _remove_leftovers(directory)
        aside.mkdir(parents=True)
        for name, data in files.items():
            write_durably(aside / name, data)
        exchange(aside, final) if final.exists() else os.rename(aside, final)
        shutil.rmtree(aside, ignore_errors=True)  # the same step, saved before
        sync_directory(directory)
        replace_file(directory / "latest", final.name.encode())
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise Unwritten(
            f"checkpoint {final} cannot be written: {error.strerror}; free space there or set run.dir"
        ) from None
    return final


def _remove_leftovers(directory: Path) -> None:
    """Remove what a kill has left of checkpoints that were being written or removed; nobody else writes here."""
    recover_exchanged(directory)
    for kind in ("writing", "removing"):
        for folder in directory.glob(f".{kind}-step-*"):
            shutil.rmtree(folder, ignore_errors=True)


def mark_best(directory: Path, checkpoint: Path) -> None:
    """Point `best` in RUN/checkpoints at `checkpoint`."""
    replace_file(directory / "best", checkpoint.name.encode())


def prune(directory: Path, keep: int, newest: Path) -> None:
    """Remove what is older than the `keep` checkpoints up to `newest`, the one that was written last, except the best.

    Checkpoints of later steps are not counted: they were damaged, and the training was continued from an earlier one.
    """
    best = named(directory, "best")
    for old in [folder for folder in find(directory) if _step(folder) <= _step(newest)][keep:]:
        if old != best:
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
    folders = [path for path in directory.glob("step-*") if is_checkpoint_name(path.name) and path.is_dir()]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def read(checkpoint: Path) -> Files:
    """The files of a checkpoint, each equal to its hash.

    Raises:
        Damaged: naming what is missing, differs, or is larger than this machine's memory.
    """
    try:
        manifest = (checkpoint / "manifest.json").read_bytes()
        hashes = msgspec.json.decode(manifest, type=dict[str, dict[str, str]])["sha256"]
        if not set(NAMES) <= set(hashes) <= {*NAMES, *OPTIONAL_NAMES}:
            raise Damaged(
                f"checkpoint {checkpoint} has a manifest of {', '.join(hashes) or 'no files'}; take another one"
            )
        size = sum((checkpoint / name).stat().st_size for name in hashes)
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise Damaged(
                f"checkpoint {checkpoint} has {size:,} bytes, more than this machine's memory; take another one"
            )
        files = {name: (checkpoint / name).read_bytes() for name in hashes}
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"checkpoint {checkpoint} is not whole: {error}; take another one") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise Damaged(f"checkpoint {checkpoint / name} is damaged: its sha256 differs; take another one")
    files["manifest.json"] = manifest
    return files


def read_newest(
    directory: Path, check: Callable[[Path, Files], None] = lambda folder, files: None
) -> tuple[Path, Files, list[str]] | None:
    """The newest whole checkpoint, with what was passed over on the way; None where there is no checkpoint.

    Args:
        check: raises `Damaged` where the files, each of which equals its hash, cannot be used.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    problems: list[str] = []
    for checkpoint in find(directory):
        try:
            files = read(checkpoint)
            check(checkpoint, files)
            return checkpoint, files, problems
        except Damaged as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"no checkpoint in {directory} is whole; the newest: {problems[0]}")
    return None


def tensors(files: Files, name: str) -> dict[str, Tensor]:
    """The tensors in the file `name` of a checkpoint.

    Raises:
        Damaged: it is missing or cannot be read.
    """
    try:
        return safetensors.torch.load(files[name])
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"checkpoint file {name} cannot be read: {error}") from None


def state(files: Files) -> State:
    """The state in a checkpoint's files.

    Raises:
        Damaged: it is missing or cannot be decoded.
    """
    try:
        return msgspec.json.decode(files["state.json"], type=State)
    except (ValueError, KeyError) as error:
        raise Damaged(f"checkpoint file state.json cannot be read: {error}") from None


def identity_of(found: State, wanted: dict[str, Any]) -> dict[str, Any]:
    """The identity of a checkpoint; what an earlier version does not keep is filled in, or taken from `wanted`."""
    return {**{key: wanted[key] for key in KEPT_LATER if key in wanted}, **ADDED_IDENTITY, **found.identity}


def check_identity(found: State, wanted: dict[str, Any], where: Path) -> None:
    """Raises a `UserError` naming the first key in which a checkpoint and this training differ."""
    then = identity_of(found, wanted)
    for key, value in wanted.items():
        made = then.get(key)
        if made != value:
            raise UserError(f"{where} was made with {key}={made}, not {value}; set it so, or choose another run.dir")


def pack(files: Files) -> bytes:
    """Files as one run of bytes, to send to other ranks."""
    return msgspec.msgpack.encode(files)


def unpack(data: bytes) -> Files:
    """The files that `pack` made `data` of."""
    return msgspec.msgpack.decode(data, type=Files)
