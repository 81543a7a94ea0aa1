"""What a checkpoint must hold to be loaded, checked before anything is.

Hashes only show that a checkpoint is what its writer wrote: another program, or an attacker, writes valid hashes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vgg_ddp.errors import Damaged
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import Files, State

ONE_VALUE, TWO_DIMENSIONS = "step", "powersgd_factor"  # kinds of optimizer state that have not their parameter's shape
SCALER = torch.amp.GradScaler("cpu").state_dict().keys()


@dataclass(frozen=True)
class Expected:
    """What a training expects.

    Attributes:
        weights: the network's state dict, of which shapes and types count.
        parameters: which of them are trained.
        kinds: the state that the optimizer keeps of each.
        averaged: whether there are averaged weights.
        steps_per_epoch, batch: of the order of samples.
    """

    weights: Mapping[str, Tensor]
    parameters: frozenset[str]
    kinds: tuple[str, ...]
    averaged: bool
    steps_per_epoch: int
    batch: int

    def check(self, where: Path, files: Files) -> None:
        """Raises `Damaged`, naming what in the checkpoint `where` does not fit."""
        for name in ("model.safetensors", *(["ema.safetensors"] if self.averaged else [])):
            checked_weights(self.weights, where, files, name)
        for problem in (
            *self._of_optimizer(checkpoint.tensors(files, "optimizer.safetensors")),
            *self._of_state(checkpoint.state(files)),
            *self._of_answers(files),
        ):
            raise Damaged(f"checkpoint {where} does not fit this training: {problem}; take another one")

    def _of_optimizer(self, tensors: dict[str, Tensor]) -> Iterator[str]:
        kept: dict[str, set[str]] = {kind: set() for kind in self.kinds}
        for key, tensor in tensors.items():
            name, _, kind = key.partition("/")
            kind, at, rank = kind.partition("@")  # of a rank alone
            like = self.weights.get(name)
            if like is None or (at and not rank.isdecimal()):
                yield f"optimizer.safetensors has {key}, which is of no parameter"
                continue
            fits = {ONE_VALUE: tensor.numel() == 1, TWO_DIMENSIONS: tensor.ndim == 2}
            if not fits.get(kind, tensor.shape == like.shape):
                yield f"optimizer.safetensors has {key} of shape {list(tensor.shape)}, the parameter has {list(like.shape)}"
            yield from _of_values(key, tensor)
            kept.setdefault(kind, set()).add(name)
        for kind in self.kinds:
            if kept[kind] and (missing := sorted(self.parameters - kept[kind])):
                yield f"optimizer.safetensors has no {missing[0]}/{kind}"

    def _of_state(self, state: State) -> Iterator[str]:
        first = state.epoch * self.steps_per_epoch
        if not (
            state.epoch <= state.step <= first + state.step_in_epoch and state.step_in_epoch <= self.steps_per_epoch
        ):
            yield (
                f"step {state.step} is not in epoch {state.epoch} at its step {state.step_in_epoch}, of {self.steps_per_epoch}"
            )
        scaler = state.engine.get("scaler", {})
        if not isinstance(scaler, dict) or (scaler and (scaler.keys() != SCALER or min(scaler.values()) < 0)):
            yield "its loss scale is none"

    def _of_answers(self, files: Files) -> Iterator[str]:
        if checkpoint.ANSWERS not in files:
            return
        found = checkpoint.tensors(files, checkpoint.ANSWERS)
        shape = [2, checkpoint.state(files).step_in_epoch * self.batch]
        for key, tensor in found.items():
            if key != "answers" or list(tensor.shape) != shape or tensor.dtype != torch.float32:
                yield f"answers.safetensors has {key} of {tensor.dtype} {list(tensor.shape)}, not answers of {shape}"
        if not found:
            yield "answers.safetensors has no answers"


def checked_weights(weights: Mapping[str, Tensor], where: Path, files: Files, name: str) -> dict[str, Tensor]:
    """The tensors in the file `name`.

    Raises:
        Damaged: they are not those of `weights`, of which names, shapes and types count, or not finite.
    """
    found = checkpoint.tensors(files, name)
    problems = [f"{key} is missing" for key in weights.keys() - found.keys()]
    problems += [f"{key} is unknown" for key in found.keys() - weights.keys()]
    for key in sorted(weights.keys() & found.keys()):
        if found[key].shape != weights[key].shape:
            problems.append(f"{key} has shape {list(found[key].shape)}, not {list(weights[key].shape)}")
        if found[key].dtype != weights[key].dtype:
            problems.append(f"{key} is {found[key].dtype}, not {weights[key].dtype}")
        problems += _of_values(key, found[key])
    if problems:
        made = checkpoint.state(files).identity
        raise Damaged(
            f"checkpoint {where} is of another network ({made.get('network')}, head {made.get('model.head')}, batch_norm "
            f"{made.get('model.batch_norm')}) or damaged: in {name}, {problems[0]}; take another one"
        )
    return found


def _of_values(key: str, tensor: Tensor) -> Iterator[str]:
    if tensor.dtype not in (torch.float32, torch.int64):
        yield f"{key} is {tensor.dtype}"
    elif not is_finite(tensor):
        yield f"{key} is not finite"


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite.

    Their sum tells in an eighth of the time that testing each value takes (8 MB on one core: 0.9, not 7 ms). Only if
    the sum is not finite, which finite values can cause by overflow, is each value tested.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
