"""What every benchmark has as a command: its options, its file of rows with the machine, its picture, its exit code."""

from __future__ import annotations

import json
import os
import platform
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.measurement import baseline, pictures
from vgg_ddp import cores
from vgg_ddp.distributed.devices import device_names
from vgg_ddp.errors import EXIT_USER_ERROR, UserError
from vgg_ddp.training.environment import commit, cuda_versions, gpus

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
PRECISION_HELP = "(default: auto, the device's fastest)"


def parser(
    name: str, description: str | None, threads: int | None = None, in_rounds: bool = True, compared: bool = True
) -> ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        name: of the module in `benchmarks`.
        threads: of each process; None makes it the option --threads.
        in_rounds: whether it measures in rounds, whose number is an option then.
        compared: whether it draws its rows and compares them with earlier ones (see `keep`).
    """
    prog = f"python -m benchmarks.{name}"
    parser = ArgumentParser(prog=prog, description=(description or "").splitlines()[0])
    parser.set_defaults(prog=prog, threads=threads)
    if in_rounds:
        parser.add_argument("--rounds", type=count, default=5, help="rounds that count (default: 5)")
    if threads is None:
        parser.add_argument("--threads", type=count, default=cores.usable(), help="CPU threads (default: all cores)")
    parser.add_argument(
        "--json", type=result_file, help=f"write the rows to this file{', and pictures beside it' * compared}"
    )
    if compared:
        baseline.add_options(parser)
    return parser


def count(text: str) -> int:
    """The type of an option that counts something, of which there must be one at least.

    Raises:
        ArgumentTypeError: it is no such number.
    """
    if not text.strip().isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def result_file(text: str) -> Path:
    """The type of an output file: makes its folder, and checks, before hours of measuring, that it can be written.

    Raises:
        ArgumentTypeError: it cannot.
    """
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written: it is a folder, or write-protected")
    return path


def run(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark's `main`; a mistake of the user's is one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit()


def keep(options: Namespace, rows: list[dict[str, Any]], unit: str, label: str, log: bool = False) -> None:
    """Write and draw the rows if `--json` asks for it, and compare them if `--baseline` does.

    Args:
        unit: the key of the rows that is drawn; `label` is its name for readers.
        log: whether the axis is logarithmic.

    Raises:
        UserError: see `baseline.report`.
    """
    write(options, rows)
    pictures.bars(options.json, rows, unit, label, log)
    baseline.report(rows, options)


def write(options: Namespace, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write the rows with the machine and the command, if `--json` names a file; `more` are further keys."""
    if options.json is not None:
        command = " ".join([options.prog, *sys.argv[1:]])
        contents = {"machine": machine(options.threads), "command": command, **more, "rows": rows}
        options.json.write_text(as_json(contents) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """The devices, versions and load of this machine, for the file of rows."""
    return {
        "devices": device_names(),
        "gpus": gpus(),
        "libraries": cuda_versions(),
        "threads": threads,
        "cores": cores.usable(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "load_average": os.getloadavg(),
        "date": date.today().isoformat(),
    }


def as_json(value: Any, indent: str = "", width: int = 120) -> str:
    """JSON with readable diffs: one line for what fits on it, else one for each element or key."""
    line = json.dumps(value)
    fits = len(indent + line) <= width
    flat = isinstance(value, list) and not any(isinstance(element, dict | list) for element in value)
    if not isinstance(value, dict | list) or fits or flat:
        return line
    inner = indent + "  "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + json.dumps(element) for element in value) + f"\n{indent}]"
    entries = [f"{inner}{json.dumps(str(key))}: {as_json(entry, inner, width)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
