"""What becomes of a benchmark's rows: a file, a picture beside it, and verdicts against stored runs."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks.measurement import baseline, measuring, pictures


def keep(
    options: Namespace,
    name: str,
    rows: list[dict[str, Any]],
    unit: str,
    label: str,
    threads: int | None = None,
    log: bool = False,
) -> None:
    """Write and draw the rows if `--json` asks for it, and compare them if `--baseline` does.

    Args:
        unit, label: the key of the rows that is drawn, and the words for it.
        threads: of each process; None is `--threads`.

    Raises:
        UserError: see `baseline.report`.
    """
    measuring.write(options.json, name, options.threads if threads is None else threads, rows)
    pictures.bars(options.json, rows, unit, label, log)
    baseline.report(rows, options)
