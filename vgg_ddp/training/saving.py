"""Saving while the training goes on: a snapshot of the tensors now, and one thread that writes it to the disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vgg_ddp.config.schema import CheckpointConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import AFTER_DIVERGENCE, StoppedOnRequest, Unwritten, UserError
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import complain
from vgg_ddp.run.contents import is_finite

THREAD = "checkpoint"  # how the name of a writing thread begins


class Saver:
    """Saves checkpoints into RUN/checkpoints, one at a time. All ranks call each method together; rank 0 writes.

    A write error is raised by the next call. As a context manager, it exits once everything is on the disk.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, world: World) -> None:
        self._directory, self._config, self._world = directory, config, world
        self._writing: Future[None] | None = None
        self._owed: Callable[[], None] | None = None  # writes the best checkpoint, where that was tried and failed

    def save(
        self,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: State,
        ema: dict[str, Tensor] | None,
        best: bool,
        answers: Tensor | None = None,
    ) -> None:
        """Begin to write a checkpoint of this moment, once the one before it is on the disk.

        Args:
            best: mark it as the best so far.
            answers: to the images of the epoch at hand, in memory that nothing else writes to.

        Raises:
            UserError: the one before could not be written.
        """
        self._world.activity.enter("save", state.step, waits=not self._world.is_main)
        with self._world.together():
            if self._world.is_main:
                self._wait(self._config.on_error == "continue")
                copied, state = Snapshot([model, optimizer, ema or {}]), copy.deepcopy(state)
                thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
                write = partial(self._write, copied.get, state, ema is not None, best, answers)
                self._writing = thread.submit(self._write_in_turn, write, best)
                thread.shutdown(wait=False)  # it ends when it is done

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            UserError: it could not be written.
        """
        self._world.activity.enter("save", waits=not self._world.is_main)
        with self._world.together():
            self._wait()

    def settle(self) -> None:
        """Wait until what this rank is writing is on the disk or has failed, for whatever reason."""
        if self._writing is not None:
            self._writing.exception()

    def _wait(self, go_on: bool = False) -> None:
        """Wait for the one that is being written; if that fails and `go_on`, print the error instead of raising it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except Unwritten as error:
                if not go_on:
                    raise
                complain(f"vgg-ddp: {error}; going on")

    def _write_in_turn(self, write: Callable[[], None], best: bool) -> None:
        """Write a checkpoint, and before it the best one if that had failed: checkpoints since then are no better."""
        if best:
            self._owed = write
        elif self._owed is not None:
            self._owed()
            self._owed = None
        write()
        if best:
            self._owed = None

    def _write(
        self,
        tensors: Callable[[], list[dict[str, Tensor]]],
        state: State,
        averaged: bool,
        best: bool,
        answers: Tensor | None,
    ) -> None:
        model, optimizer, ema = tensors()
        for name, tensor in model.items():
            if not is_finite(tensor):
                raise UserError(f"{name} is not finite after step {state.step}, which is not saved: {AFTER_DIVERGENCE}")
        files = checkpoint.encode(model, optimizer, state, ema if averaged else None, answers)
        folder = checkpoint.write(self._directory, files, state.step)
        try:
            if best:
                checkpoint.mark_best(self._directory, folder)
            checkpoint.prune(self._directory, self._config.keep, folder)
        except OSError as error:
            raise Unwritten(f"{self._directory} cannot be written: {error.strerror}; free space there") from None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if kind is None or issubclass(kind, StoppedOnRequest):  # every rank is here
            self.finish()
        else:
            self.settle()  # it is the other error that is told


class Snapshot:
    """Copies of tensors in host memory, unaffected by later changes to the tensors.

    Copies of GPU tensors lie in pinned memory; the GPU makes them after the work that was queued before.
    """

    def __init__(self, groups: list[dict[str, Tensor]]) -> None:
        self._groups = [
            {name: tensor.detach().to("cpu", non_blocking=True, copy=True) for name, tensor in group.items()}
            for group in groups
        ]
        self._made = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if self._made is not None:
            self._made.record()

    def get(self) -> list[dict[str, Tensor]]:
        """The copies, once they are complete."""
        if self._made is not None:
            self._made.synchronize()
        return self._groups
