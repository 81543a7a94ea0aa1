"""What a person sees while something runs: a progress bar on a terminal, plain lines in a log.

Output is optional: where the terminal is closed, a pipe's reader gone or the log's disk full, the run goes on without.
"""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vgg_ddp.errors import printable

_SECONDS_BETWEEN_LINES = 10.0
NARROW = 40  # columns, of a terminal that has no room for a drawn table
FIRST = 10  # columns that a drawn table has for its first, at least


class _StandardOutput:
    """A file for rich that passes everything on to whatever `sys.stdout` is at the time."""

    def write(self, text: str) -> None:
        _write(sys.stdout, text)

    def flush(self) -> None:
        _write(sys.stdout, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def _write(stream: TextIO, text: str) -> None:
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="replace")  # a terminal that has no such letter shows a question mark
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # which also takes what the stream still holds


_console = Console(file=_StandardOutput(), highlight=False, soft_wrap=True)  # type: ignore[arg-type]


def complain(text: str) -> None:
    """Print a line on the standard error."""
    _write(sys.stderr, f"{printable(text)}\n")


def say(text: str) -> None:
    """Print a line."""
    _console.print(Text(printable(text)))


def box(title: str, text: str) -> None:
    """Something that must not be overlooked."""
    _console.print(Panel(Text(printable(text)), title=Text(title), expand=False, width=min(_console.width, 88)))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table; the first column is text, the others numbers, which are shown whole however narrow the terminal."""
    others = [max(map(len, cells)) + 3 for cells in list(zip(columns, *rows))[1:]]  # with a line and two spaces
    if _console.width < max(NARROW, FIRST + sum(others)):
        say("\n".join([title, *(" ".join(cells) for cells in (columns, *rows))]))
        return
    drawn = Table(title=Text(title))
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    _console.print(drawn)


class TrainingProgress:
    """Shows a training's metrics as they come; silent where `shown` is false (every rank but 0)."""

    def __init__(self, total_steps: int, first_step: int, shown: bool) -> None:
        self._shown, self._total = shown, total_steps
        self._last_line = 0.0
        self._bar: Progress | None = None
        if shown and _console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(),
                console=_console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step)

    def update(self, row: dict[str, Any], seconds_left: float) -> None:
        """Show a row of training metrics."""
        text = (
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}  "
            f"{row['images_per_second']:.0f} images/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=text)
        elif self._shown and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(f"step {row['step']} of {self._total}  {text}  {seconds_left:.0f} s left")

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
