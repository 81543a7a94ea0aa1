"""RUN/report/live.html: the curves and the latest answers of a training, written anew while it runs and when it ends.

The page is drawn by rank 0, in some hundredths of a second. Whatever goes wrong with it, the training goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.report import thumbnails, unfinished, words
from vgg_ddp.report.rendering import filled
from vgg_ddp.report.sections.pictures import Tile
from vgg_ddp.run import outcome
from vgg_ddp.run.console import say
from vgg_ddp.run.metrics_log import Row, read_rows
from vgg_ddp.training.job import Job

SHOWN = 12  # images, the same ones each time
SECONDS_BETWEEN = 15.0  # from one page to the next where no validation comes between, and until it reloads itself
MOST_SHARE = 0.005  # of the training's time


class LivePage:
    """Watches one training (see `vgg_ddp.training.recorder.Watch`), from the beginning of its context to its end."""

    def __init__(self, job: Job) -> None:
        self._job, self._run = job, job.run
        self._rows: list[Row] = []
        self._byte = 0
        self._pictures: dict[int, tuple[str, bool]] = {}  # the shown ones, by sample
        self._tiles: list[Tile] = []
        self._recorded = outcome.recorded(job.run)
        self._aside = self._run.live.with_name(".live.html.writing")
        self._next, self._broken = 0.0, False

    def __enter__(self) -> LivePage:
        self._recorded.__enter__()
        say(f"watch it in a browser: {self._run.live}")
        self._write(outcome.Account("Running", "It has begun."))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._recorded.__exit__(kind, error, traceback)
        finally:
            self._write(None)

    def row_written(self, row: Row) -> None:
        """Draw the page with this row of RUN/metrics.jsonl, if it is a validation's or the page is older than it should be."""
        if row["split"] == "validation" or time.monotonic() >= self._next:
            self._write(outcome.Account("Running", "It is being trained."))

    def validated(self, samples: NDArray[np.int64], label: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Take in the answers to the images held out: label [n], logits [n, classes], of the split's `samples` [n]."""
        try:
            chosen = np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).astype(np.int64)
            self._tiles = [self._tile(int(samples[k]), int(label[k]), logits[k]) for k in chosen]
        except Exception as error:
            self._give_up(error)

    def _tile(self, sample: int, label: int, logits: NDArray[np.float32]) -> Tile:
        dataset = self._job.data.dataset
        if sample not in self._pictures:
            pixels = dataset.split(self._job.data.validation.split).decode(sample)
            self._pictures[sample] = thumbnails.single(pixels), thumbnails.pixelated(pixels)
        source, pixelated = self._pictures[sample]
        prediction = int(logits.argmax())
        confidence = float(1 / np.exp(logits.astype(np.float64) - logits[prediction]).sum())
        return Tile(
            source=source,
            pixelated=pixelated,
            index=sample,
            name="",
            true=words.shown(dataset.classes[label]),
            predicted=words.shown(dataset.classes[prediction]),
            confidence=words.percent(confidence, 0),
            right=label == prediction,
        )

    def _write(self, account: outcome.Account | None) -> None:
        """Draw the page; without an account, what became of the run is read from its folder."""
        if self._broken:
            return
        begun = time.monotonic()
        try:
            rows, _, self._byte = read_rows(self._run.metrics, self._byte)
            self._rows += [{key: value for key, value in row.items() if key != "ranks"} for row in rows]
            running = account is not None
            account = account or outcome.account(self._run, self._rows)
            live = {"written": time.strftime("%d %B %Y, %H:%M:%S"), "reload": int(SECONDS_BETWEEN) if running else 0}
            values = unfinished.values(
                self._run, self._rows, account, tiles=self._tiles, left=self._left(running), live=live
            )
            page = filled(unfinished.TEMPLATE, values)
            self._run.live.parent.mkdir(exist_ok=True)
            self._aside.write_bytes(page)  # not flushed to the disk, for which a training would wait
            os.replace(self._aside, self._run.live)
        except Exception as error:
            self._give_up(error)
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, (now - begun) / MOST_SHARE)

    def _left(self, running: bool) -> str:
        """How far the training is, in words."""
        step = self._rows[-1]["step"] if self._rows else 0
        total = self._job.total_steps
        if not running or not step or self._rows[-1].get("seconds") is None:
            return ""
        left = self._rows[-1]["seconds"] / step * (total - step)
        return f"Step {step:,} of {total:,}; about {words.duration(left)} left."

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        with contextlib.suppress(OSError):
            self._aside.unlink()
        say(f"{self._run.live} cannot be written ({error}); the training goes on without it")
